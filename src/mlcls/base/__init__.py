"""What knows nothing of models: files, downloads, archives, YAML, text, processes, the machine, pictures."""
