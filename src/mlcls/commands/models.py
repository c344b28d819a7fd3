"""The command `mlcls models`."""

from __future__ import annotations

import argparse
from typing import Final

NAME: Final = "models"
SUMMARY: Final = "List the six official models."


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Add no options."""


def run(_: argparse.Namespace) -> int:
    """Print the table of the official models."""
    from mlcls.model.catalog import OFFICIAL_MODELS

    width = max(map(len, OFFICIAL_MODELS))
    print(f"{'model':{width}}  {'mAP (%)':>7}  {'size (MB)':>9}  inference model")
    for model in OFFICIAL_MODELS.values():
        print(f"{model.name:{width}}  {model.mean_average_precision:7.2f}  {model.size_mb:9.1f}  {model.inference_url}")
    return 0
