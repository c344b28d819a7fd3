"""The outcomes of images and requests, counted so that the counts of processes and machines can be added up."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

# Relative width of a bucket of latencies.
_BUCKET: Final = math.log(1.02)
_MAX_DETAILS: Final = 50


class Kind(str, enum.Enum):
    """The outcome of one image; a request has the first of these outcomes that one of its images has."""

    CROSSED = "crossed answer"
    WRONG = "wrong answer"
    ERROR = "server error"
    LOST = "no answer"
    LATE = "late"
    UNAVAILABLE = "unavailable"
    RIGHT = "right"
    REFUSED = "bad image refused"


# Kinds that must not occur at all. A full server that says so (UNAVAILABLE) does what it should.
FAULTS: Final = (Kind.CROSSED, Kind.WRONG, Kind.ERROR, Kind.LOST, Kind.LATE)
FAILURES: Final = (*FAULTS, Kind.UNAVAILABLE)


def worst(kinds: Iterable[Kind]) -> Kind:
    """Return the kind of a request from the kinds of its images."""
    return min(kinds, key=list(Kind).index)


class Tally:
    """Counts by time bin, protocol and kind.

    Attributes:
        bin_s: Length of a bin in seconds; a bin's number is the Unix time divided by it.
        sent: Images and requests sent, by protocol: `("grpc", "images")`.
        images: Images by the answer's bin, protocol and kind.
        requests: Requests by bin, protocol and kind.
        latencies: Correctly answered requests, by bin, protocol and latency bucket.
        details: Descriptions of the first failures.
    """

    def __init__(self, bin_s: float = 1.0) -> None:
        self.bin_s = bin_s
        self.sent: Counter[tuple[str, str]] = Counter()
        self.images: Counter[tuple[int, str, str]] = Counter()
        self.requests: Counter[tuple[int, str, str]] = Counter()
        self.latencies: Counter[tuple[int, str, int]] = Counter()
        self.details: list[str] = []

    def note_sent(self, protocol: str, images: int) -> None:
        """Count a request before it is sent."""
        self.sent[protocol, "images"] += images
        self.sent[protocol, "requests"] += 1

    def note_answer(self, protocol: str, kinds: list[Kind], latency_s: float, now_s: float) -> None:
        """Count the outcome of a request.

        Args:
            protocol: `grpc` or `http`.
            kinds: Outcome of each image.
            latency_s: Time from sending to the complete answer.
            now_s: Unix time.
        """
        number = int(now_s / self.bin_s)
        for kind in kinds:
            self.images[number, protocol, kind.value] += 1
        overall = worst(kinds)
        self.requests[number, protocol, overall.value] += 1
        if overall is Kind.RIGHT:
            self.latencies[number, protocol, _bucket(latency_s)] += 1

    def note_detail(self, text: str) -> bool:
        """Keep the description of a failure if it is one of the first; return whether it is."""
        if len(self.details) >= _MAX_DETAILS:
            return False
        self.details.append(text)
        return True

    def add(self, exported: dict[str, Any]) -> None:
        """Add the counts that another tally exported."""
        for name in ("sent", "images", "requests", "latencies"):
            counts: Counter[Any] = getattr(self, name)
            for *key, count in exported[name]:
                counts[tuple(key)] += count
        for text in exported["details"]:
            self.note_detail(text)

    def export(self) -> dict[str, Any]:
        """Return all counts as a JSON document."""
        rows = {
            name: [[*key, count] for key, count in getattr(self, name).items()]
            for name in ("sent", "images", "requests", "latencies")
        }
        return {"bin_s": self.bin_s, **rows, "details": list(self.details)}

    def take(self) -> dict[str, Any]:
        """Export all counts and reset them."""
        exported = self.export()
        for counts in (self.sent, self.images, self.requests, self.latencies, self.details):
            counts.clear()
        return exported

    def count_images(self, kind: Kind, protocol: str | None = None) -> int:
        """Return the number of images of a kind."""
        return _count(self.images, kind, protocol)

    def count_requests(self, kind: Kind, protocol: str | None = None) -> int:
        """Return the number of requests of a kind."""
        return _count(self.requests, kind, protocol)

    def count_sent(self, what: str = "images", protocol: str | None = None) -> int:
        """Return the number of images or requests sent."""
        return sum(n for (one, unit), n in self.sent.items() if unit == what and protocol in (None, one))

    def count_unfinished(self, protocol: str | None = None) -> int:
        """Return the number of images that were sent but got no response, not even an error."""
        heard = sum(n for (_, one, _), n in self.images.items() if protocol in (None, one))
        return self.count_sent("images", protocol) - heard

    def percentile_ms(self, percent: float, protocol: str | None = None) -> float:
        """Return a latency percentile of right answers in milliseconds, within 1%; NaN if there are none.

        Args:
            percent: 50 for the median.
            protocol: Count only this protocol.
        """
        buckets: Counter[int] = Counter()
        for (_, one, bucket), count in self.latencies.items():
            if protocol in (None, one):
                buckets[bucket] += count
        return _percentile_ms(buckets, percent)

    def percentiles_by_bin_ms(self, percents: Sequence[float]) -> dict[int, list[float]]:
        """Return percentiles, as from `percentile_ms`, for each bin with a right answer."""
        buckets: dict[int, Counter[int]] = {}
        for (number, _, bucket), count in self.latencies.items():
            buckets.setdefault(number, Counter())[bucket] += count
        return {number: [_percentile_ms(own, percent) for percent in percents] for number, own in buckets.items()}

    def bins(self) -> list[int]:
        """Return the numbers of all bins from the first answer to the last, in order."""
        numbers = [number for number, _, _ in self.requests]
        return list(range(min(numbers), max(numbers) + 1)) if numbers else []


def _bucket(latency_s: float) -> int:
    return math.floor(math.log(max(latency_s, 1e-6)) / _BUCKET)


def _percentile_ms(buckets: Counter[int], percent: float) -> float:
    """Return a percentile by nearest rank; a bucket counts as its middle."""
    rank = math.ceil(buckets.total() * percent / 100)
    passed = 0
    for bucket in sorted(buckets):
        passed += buckets[bucket]
        if passed >= rank:
            return math.exp((bucket + 0.5) * _BUCKET) * 1e3
    return float("nan")


def _count(counts: Counter[tuple[int, str, str]], kind: Kind, protocol: str | None) -> int:
    return sum(n for (_, one, name), n in counts.items() if name == kind.value and protocol in (None, one))
