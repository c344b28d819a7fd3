"""The load test's own error; `mlcls.errors` is not installed in Locust's environment."""

from __future__ import annotations


class LoadTestError(Exception):
    """A load test cannot run: an option, a photo or the file of expected answers is wrong, or the server refuses."""
