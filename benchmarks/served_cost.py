"""What a server's processes took for the images that it answered between two moments."""

from __future__ import annotations

import dataclasses
import urllib.request
from collections.abc import Mapping
from typing import Final

from benchmarks.process_usage import cpu_since, read_usage, total_pss_bytes
from mlcls.errors import ServerError
from mlcls.server.process import TritonServer

# The steps of an ensemble, by the end of the name of the model that serves them.
_STEPS: Final = ("preprocess", "engine", "postprocess")
_IMAGES: Final = "nv_inference_count"


@dataclasses.dataclass(frozen=True)
class ServedCost:
    """What was taken.

    Attributes:
        images: Images that the server answered by its own count.
        core_ms_per_image: Processor time for one of them, by process: `preprocess`, `engine`, `postprocess`,
            `tritonserver`; empty where no image was answered.
        pss_mb: Memory of all processes at the end (PSS).
        metric_series: Series that the server's metrics have.
    """

    images: int
    core_ms_per_image: Mapping[str, float]
    pss_mb: float
    metric_series: int

    @property
    def total_core_ms(self) -> float:
        """Processor time for one image, all processes together; 0 where no image was answered."""
        return sum(self.core_ms_per_image.values())


class CostMeter:
    """Begins to count when it is made."""

    def __init__(self, server: TritonServer, *models: str) -> None:
        """Note where the counts stand.

        Args:
            server: A running server.
            models: The ensembles whose images count.

        Raises:
            ServerError: Its metrics cannot be read.
        """
        self._server = server
        self._models = models
        self._usage = read_usage(server.pid)
        self._images = count_images(_read_metrics(server.metrics_url), models)

    def read(self) -> ServedCost:
        """Return what was taken since.

        Raises:
            ServerError: The metrics cannot be read.
        """
        metrics, usage = _read_metrics(self._server.metrics_url), read_usage(self._server.pid)
        spent_s = _by_step(cpu_since(self._usage, usage))
        answered = count_images(metrics, self._models) - self._images
        return ServedCost(
            answered,
            {name: seconds / answered * 1e3 for name, seconds in spent_s.items()} if answered else {},
            total_pss_bytes(usage) / 1e6,
            sum(bool(line) and not line.startswith("#") for line in metrics.splitlines()),
        )


def _read_metrics(metrics_url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no way to this machine
    try:
        with opener.open(metrics_url, timeout=10) as response:
            return bytes(response.read()).decode()
    except OSError as error:
        raise ServerError(f"Expected metrics at {metrics_url}, got: {error}") from None


def count_images(metrics: str, models: tuple[str, ...]) -> int:
    """Return images that some models answered, all their versions, from Triton's metrics in Prometheus's text form."""
    starts = tuple(f'{_IMAGES}{{model="{model}",' for model in models)
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in metrics.splitlines() if line.startswith(starts))


def _by_step(spent_s: Mapping[str, float]) -> dict[str, float]:
    """Add up the processes of each step, of all models; what is no step keeps its name."""
    added: dict[str, float] = {}
    for name, seconds in spent_s.items():
        step = next((step for step in _STEPS if name.endswith(f"_{step}")), name)
        added[step] = added.get(step, 0.0) + seconds
    return added
