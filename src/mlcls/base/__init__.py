"""What knows nothing about models: files, downloads, archives, YAML, text, processes, the machine, charts."""
