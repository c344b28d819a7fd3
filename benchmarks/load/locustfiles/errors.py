"""The one error of the load test's own; `mlcls.errors` is not installed where locust is."""

from __future__ import annotations


class LoadTestError(Exception):
    """A load test cannot start: an option, a photo or the file of expected answers is wrong, or the server refuses."""
