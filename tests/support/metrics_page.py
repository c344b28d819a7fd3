"""A server's /metrics, read as Prometheus reads them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast

from mlcls.server.http_api import HttpApi
from mlcls.server.process import TritonServer
from support.settling import read_settled, wait_for

_LINE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"(?:,|$)')


class MetricsPage:
    """The values at one moment."""

    def __init__(self, server: TritonServer) -> None:
        self.text = HttpApi(server.metrics_url).request("", 10).decode()
        self._values: list[tuple[str, dict[str, str], float]] = []
        for line in self.text.splitlines():
            if line.startswith("#"):
                continue
            match = _LINE.fullmatch(line)
            assert match is not None, line
            labels = {name: _unescape(value) for name, value in _LABEL.findall(match["labels"] or "")}
            self._values.append((match["name"], labels, float(match["value"])))

    @property
    def names(self) -> set[str]:
        return {name for name, _, _ in self._values}

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum over the lines with this name and these labels."""
        return sum(value for own, found, value in self._values if own == name and labels.items() <= found.items())

    def of_mlcls(self) -> list[tuple[str, dict[str, str], float]]:
        """Return the project's own metrics, without those of single labels, which are sent less often."""
        return [line for line in self._values if line[0].startswith("mlcls_") and "label" not in line[1]]

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Return the nonzero values of the lines with this name and these labels, by another label."""
        return {
            found[label]: value
            for own, found, value in self._values
            if own == name and labels.items() <= found.items() and value
        }


def wait_for_metrics(server: TritonServer, reached: Callable[[MetricsPage], bool]) -> MetricsPage:
    """Return the first page for which a condition holds; backends send their counts once a second."""

    def read() -> MetricsPage | None:
        page = MetricsPage(server)
        return page if reached(page) else None

    return cast(MetricsPage, wait_for(read, 30, lambda: MetricsPage(server).text))


def read_settled_metrics(server: TritonServer) -> MetricsPage:
    """Return the page once no counts of an earlier test are pending; they are sent once a second."""
    return read_settled(lambda: MetricsPage(server), pause_s=2, key=MetricsPage.of_mlcls)


def _unescape(value: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], value)
