"""The tritonserver process: options, logs, health, supervision, model control."""
