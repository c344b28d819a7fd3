"""What became of each image and of each request, counted so that processes and machines can be added up."""

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
    """What became of one image; a request counts as the first of these that one of its images is."""

    CROSSED = "crossed answer"
    WRONG = "wrong answer"
    ERROR = "server error"
    LOST = "no answer"
    LATE = "late"
    UNAVAILABLE = "unavailable"
    RIGHT = "right"
    REFUSED = "bad image refused"


# Kinds of which one is one too many. A server that is full and says so (UNAVAILABLE) has done what it is to do.
FAULTS: Final = (Kind.CROSSED, Kind.WRONG, Kind.ERROR, Kind.LOST, Kind.LATE)
FAILURES: Final = (*FAULTS, Kind.UNAVAILABLE)


def worst(kinds: Iterable[Kind]) -> Kind:
    """Return the kind of a request with such images."""
    return min(kinds, key=list(Kind).index)


class Tally:
    """Counts by bin of time, protocol and kind.

    Attributes:
        bin_s: Length of a bin in seconds; a bin's number is the Unix time divided by it.
        sent: Images and requests sent, by protocol: `("grpc", "images")`.
        images: Images by bin of the answer, protocol and kind.
        requests: Requests by the same.
        latencies: Requests that were answered right, by bin, protocol and bucket of latency.
        details: The first failures in words.
    """

    def __init__(self, bin_s: float = 1.0) -> None:
        self.bin_s = bin_s
        self.sent: Counter[tuple[str, str]] = Counter()
        self.images: Counter[tuple[int, str, str]] = Counter()
        self.requests: Counter[tuple[int, str, str]] = Counter()
        self.latencies: Counter[tuple[int, str, int]] = Counter()
        self.details: list[str] = []

    def note_sent(self, protocol: str, images: int) -> None:
        """Count a request that is about to be sent."""
        self.sent[protocol, "images"] += images
        self.sent[protocol, "requests"] += 1

    def note_answer(self, protocol: str, kinds: list[Kind], latency_s: float, now_s: float) -> None:
        """Count what became of a request.

        Args:
            protocol: `grpc` or `http`.
            kinds: What became of each image.
            latency_s: From sending to the whole answer.
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
        """Keep what is wrong in words, of the first failures; whether this was one of them."""
        if len(self.details) >= _MAX_DETAILS:
            return False
        self.details.append(text)
        return True

    def add(self, exported: dict[str, Any]) -> None:
        """Add what another tally exported."""
        for name in ("sent", "images", "requests", "latencies"):
            counts: Counter[Any] = getattr(self, name)
            for *key, count in exported[name]:
                counts[tuple(key)] += count
        for text in exported["details"]:
            self.note_detail(text)

    def export(self) -> dict[str, Any]:
        """Return all counts as JSON can hold them."""
        rows = {
            name: [[*key, count] for key, count in getattr(self, name).items()]
            for name in ("sent", "images", "requests", "latencies")
        }
        return {"bin_s": self.bin_s, **rows, "details": list(self.details)}

    def take(self) -> dict[str, Any]:
        """Export all counts and forget them."""
        exported = self.export()
        for counts in (self.sent, self.images, self.requests, self.latencies, self.details):
            counts.clear()
        return exported

    def count_images(self, kind: Kind, protocol: str | None = None) -> int:
        """Return images of a kind."""
        return _count(self.images, kind, protocol)

    def count_requests(self, kind: Kind, protocol: str | None = None) -> int:
        """Return requests of a kind."""
        return _count(self.requests, kind, protocol)

    def count_sent(self, what: str = "images", protocol: str | None = None) -> int:
        """Return images or requests sent."""
        return sum(n for (one, unit), n in self.sent.items() if unit == what and protocol in (None, one))

    def count_unfinished(self, protocol: str | None = None) -> int:
        """Return images that were sent and of which nothing was heard, not even an error."""
        heard = sum(n for (_, one, _), n in self.images.items() if protocol in (None, one))
        return self.count_sent("images", protocol) - heard

    def percentile_ms(self, percent: float, protocol: str | None = None) -> float:
        """Return a percentile of the latency of right answers in milliseconds, within 1%; NaN where there is none.

        Args:
            percent: 50 for the median.
            protocol: Of one protocol only.
        """
        buckets: Counter[int] = Counter()
        for (_, one, bucket), count in self.latencies.items():
            if protocol in (None, one):
                buckets[bucket] += count
        return _percentile_ms(buckets, percent)

    def percentiles_by_bin_ms(self, percents: Sequence[float]) -> dict[int, list[float]]:
        """Return percentiles as `percentile_ms` gives them, of each bin that has a right answer."""
        buckets: dict[int, Counter[int]] = {}
        for (number, _, bucket), count in self.latencies.items():
            buckets.setdefault(number, Counter())[bucket] += count
        return {number: [_percentile_ms(own, percent) for percent in percents] for number, own in buckets.items()}

    def bins(self) -> list[int]:
        """Return numbers of all bins from the first to the last answer, in order."""
        numbers = [number for number, _, _ in self.requests]
        return list(range(min(numbers), max(numbers) + 1)) if numbers else []


def _bucket(latency_s: float) -> int:
    return math.floor(math.log(max(latency_s, 1e-6)) / _BUCKET)


def _percentile_ms(buckets: Counter[int], percent: float) -> float:
    """By the nearest rank; a bucket stands for its middle."""
    rank = math.ceil(buckets.total() * percent / 100)
    passed = 0
    for bucket in sorted(buckets):
        passed += buckets[bucket]
        if passed >= rank:
            return math.exp((bucket + 0.5) * _BUCKET) * 1e3
    return float("nan")


def _count(counts: Counter[tuple[int, str, str]], kind: Kind, protocol: str | None) -> int:
    return sum(n for (_, one, name), n in counts.items() if name == kind.value and protocol in (None, one))
