"""What knows nothing about models: files, downloads, YAML, text, processes, the machine, charts."""
