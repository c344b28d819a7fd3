"""Measurements of what this project serves; run from the root of a checkout: `python -m benchmarks.NAME`."""
