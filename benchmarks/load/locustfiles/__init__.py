"""Load tests by locust; everything here runs in `.venv-bench`, which has no mlcls."""
