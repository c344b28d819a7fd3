"""`triton_python_backend_utils`, which exists inside Triton's stub processes only, as the backends use it."""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """As `TritonError`: a text and a code."""

    INVALID_ARG = "invalid argument"
    INTERNAL = "internal"
    CANCELLED = "cancelled"

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Response:
    def __init__(self, tensors: list[Any] | None = None, error: Error | None = None) -> None:
        self.tensors, self.error = tensors, error


class FakePbUtils:
    """Responses, a log, and the metric API.

    Attributes:
        values: What /metrics would show, by metric and values of labels.
        increments: How often a counter grew.
        fault: What the metric API raises from now on.
        removed: Objects of the metric API that are gone.
    """

    TritonError, InferenceResponse = Error, Response

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}
        self.increments = 0
        self.fault: Exception | None = None
        self.removed: list[str] = []
        self.log: list[str] = []
        fake = self

        class Metric:
            def __init__(self, name: str, labels: dict[str, str]) -> None:
                self.key = (name, ",".join(labels.values()))
                fake.values.setdefault(self.key, 0.0)

            def increment(self, value: float) -> None:
                if fake.fault is not None:
                    raise fake.fault
                assert value > 0
                assert type(value) is float
                fake.increments += 1
                fake.values[self.key] += value

            def __del__(self) -> None:
                fake.removed.append("metric")

        class MetricFamily:
            COUNTER = "counter"

            def __init__(self, name: str, description: str, kind: str) -> None:
                assert (kind, bool(description)) == ("counter", True)
                if fake.fault is not None:
                    raise fake.fault
                self.name = name

            def Metric(self, labels: dict[str, str]) -> Metric:  # noqa: N802  # Triton's name
                return Metric(self.name, labels)

            def __del__(self) -> None:
                fake.removed.append("family")

        class Logger:
            log_warn = log_error = self.log.append

        self.MetricFamily, self.Logger = MetricFamily, Logger
