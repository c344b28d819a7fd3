"""Releases of models: import, publish, roll back, follow a repository."""
