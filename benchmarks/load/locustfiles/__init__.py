"""The part of a load test that Locust runs, in `.venv-bench`, which has no mlcls."""
