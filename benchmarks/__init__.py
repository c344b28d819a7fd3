"""Benchmarks of the served models. Run them from the root of a checkout: `python -m benchmarks.NAME`."""
