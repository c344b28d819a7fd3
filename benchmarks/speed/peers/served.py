"""The served model itself, asked over gRPC like any client asks it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from benchmarks.speed.peers.contender import Answer, Figures, Load, PeerError, answer_of_result
from mlcls.model.contract import TENSORS
from mlcls.model.spec import ModelSpec
from mlcls.tuning.closed_loop import ensemble_calls, run_closed_loop


class ServedEnsemble:
    """One model of a running server."""

    name = "served"
    setting = "as shipped"

    def __init__(self, grpc_url: str, spec: ModelSpec, photos: Sequence[Path]) -> None:
        """Prepare requests to the server.

        Args:
            grpc_url: `host:port` of its gRPC API.
            spec: The served model's spec.
            photos: What it is measured with.
        """
        self._url = grpc_url
        self._spec = spec
        self._images = [photo.read_bytes() for photo in photos]

    def answer(self, photos: Sequence[Path]) -> list[Answer]:
        """See `Contender`."""
        call = ensemble_calls(self._url, self._spec, [photo.read_bytes() for photo in photos])()
        answers = []
        for _ in photos:  # a call asks for the next image each time
            try:
                response: Any = call()
            except InferenceServerException as error:
                raise PeerError(f"served: expected labels, got: {error}") from None
            answers.append(answer_of_result(json.loads(np.ravel(response.as_numpy(TENSORS.result))[0])))
        return answers

    def measure(self, load: Load) -> Figures:
        """See `Contender`."""
        calls = ensemble_calls(self._url, self._spec, self._images)
        try:
            return Figures.of_loop(run_closed_loop(calls, load.concurrency, load.window_s, load.warmup_s))
        except InferenceServerException as error:
            raise PeerError(f"served: expected answers under load, got: {error}") from None
