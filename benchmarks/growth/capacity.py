"""Estimate what a rate of images would take: `python -m benchmarks.growth.capacity output/growth`.

The estimate multiplies what `make bench-growth` measured on this machine: CPU time and file size of an image by photo
size, and memory of a server. It assumes that twice the machines answer twice the images, which nothing here measures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mlcls.errors import MlclsError

# Bytes of pixels passed from one step to the next: 448x448 RGB.
_PIXELS_BYTES: Final = 448 * 448 * 3


@dataclasses.dataclass(frozen=True)
class ImageCost:
    """What one image takes, as measured.

    Attributes:
        megapixels: Size of the photo.
        core_ms: CPU time of the server.
        ingress_core_ms: The part of it spent in tritonserver itself: protocol and copies.
        image_bytes: Size of the file.
        server_mb: Memory of the measured server (PSS).
        server_cores: Its number of cores.
    """

    megapixels: float
    core_ms: float
    ingress_core_ms: float
    image_bytes: float
    server_mb: float
    server_cores: int


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine to buy.

    Attributes:
        cores: Number of cores, of the same kind as the measured ones.
        utilization: Share of the cores that may be busy; the rest is for bursts and for the loss of a machine.
    """

    cores: int
    utilization: float


@dataclasses.dataclass(frozen=True)
class Need:
    """What a rate takes.

    Attributes:
        busy_cores: Cores that compute.
        machines: Machines, with one spare.
        memory_gb: Memory of all servers, each with as many cores as the measured one.
        ingress_gbit_s: Network traffic into the servers.
        ingress_cores: Cores that tritonserver's own work keeps busy.
        pixels_gb_s: Pixels passed from one step to the next.
    """

    busy_cores: float
    machines: int
    memory_gb: float
    ingress_gbit_s: float
    ingress_cores: float
    pixels_gb_s: float


def read_costs(folder: Path) -> list[ImageCost]:
    """Return the cost for each photo size from the axis `megapixels`; if it has several series, from the first.

    Raises:
        MlclsError: The axis was not measured.
    """
    path = folder / "megapixels.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        cores = int(document["conditions"]["cores"])
        first = document["points"][0]["series"]
        return [_read_cost(point, cores) for point in document["points"] if point["series"] == first]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise MlclsError(
            f"Expected the axis megapixels in {path}, got: {error!r}; run: make bench-growth, or python -m "
            f"benchmarks.growth --axes megapixels"
        ) from None


def _read_cost(point: Mapping[str, Any], cores: int) -> ImageCost:
    def median(name: str) -> float:
        return float(statistics.median(turn[name] for turn in point["turns"]))

    spent = [turn["core_ms_per_image"] for turn in point["turns"]]
    return ImageCost(
        point["value"],
        statistics.median(sum(each.values()) for each in spent),
        statistics.median(each["tritonserver"] for each in spent),
        median("image_bytes"),
        median("pss_mb"),
        cores,
    )


def estimate(cost: ImageCost, images_per_s: float, machine: Machine) -> Need:
    """Return what a rate of images takes."""
    busy = images_per_s * cost.core_ms / 1e3
    servers = math.ceil(busy / machine.utilization / cost.server_cores)
    return Need(
        busy,
        math.ceil(busy / machine.utilization / machine.cores) + 1,
        servers * cost.server_mb / 1e3,
        images_per_s * cost.image_bytes * 8 / 1e9,
        images_per_s * cost.ingress_core_ms / 1e3,
        images_per_s * _PIXELS_BYTES / 1e9,
    )


def core_hours_per_million(cost: ImageCost) -> float:
    """Return the CPU time for a million images."""
    return cost.core_ms * 1e6 / 3.6e6


def format_capacity(costs: Sequence[ImageCost], rates: Sequence[float], machine: Machine) -> str:
    """Return a markdown table for the cost of an image, and one for each rate."""
    lines = ["| photo | file | core-ms per image | core-hours per million images |", "|---|---|---|---|"]
    for cost in costs:
        cells = [f"{cost.megapixels:g} MP", f"{cost.image_bytes / 1e3:.0f} kB", f"{cost.core_ms:.1f}"]
        lines.append(f"| {' | '.join(cells)} | {core_hours_per_million(cost):.1f} |")
    for rate in rates:
        lines += [
            "",
            f"{rate:,.0f} images/s, machines with {machine.cores} cores, {machine.utilization:.0%} of them busy:",
            "",
            "| photo | busy cores | of tritonserver itself | machines | memory | network in | pixels between steps |",
            "|---|---|---|---|---|---|---|",
        ]
        for cost in costs:
            need = estimate(cost, rate, machine)
            cells = [
                f"{cost.megapixels:g} MP",
                f"{need.busy_cores:,.0f}",
                f"{need.ingress_cores:,.1f}",
                f"{need.machines:,}",
                f"{need.memory_gb:,.0f} GB",
                f"{need.ingress_gbit_s:,.1f} Gbit/s",
                f"{need.pixels_gb_s:,.1f} GB/s",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, help="output folder of make bench-growth")
    add("--rates", nargs="+", type=float, default=[1e3, 1e5], help="images per second (default: 1000 100000)")
    add("--machine-cores", type=int, default=64, help="default: %(default)s")
    add("--utilization", type=float, default=0.6, help="share of the cores that may be busy (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.machine_cores < 1 or not 0 < options.utilization <= 1 or min(options.rates) <= 0:
        parser.error("expected --machine-cores of 1 or more, --utilization above 0 and up to 1, --rates above 0")
    try:
        machine = Machine(options.machine_cores, options.utilization)
        print(format_capacity(read_costs(options.folder), options.rates, machine), end="")
    except MlclsError as error:
        print(f"capacity: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
