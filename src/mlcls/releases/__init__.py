"""Releases of models: import, publish, roll out, follow a repository."""
