"""A served ensemble as a runner: what a client gets, with all steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from mlcls.engines.runners import Scores
from mlcls.errors import MissingExtraError, ServedImageError, ServerError
from mlcls.model.contract import OK, TENSORS
from mlcls.model.postprocess import select_labels
from mlcls.model.spec import ModelSpec

_TIMEOUT_S: Final = 300.0


class ServedRunner:
    """Asks an ensemble over gRPC; an `ImageRunner` that takes several calls at once, with the server's own labels."""

    name = "served"
    concurrency = 8

    def __init__(self, url: str, spec: ModelSpec) -> None:
        """Connect, and ask for the labels with Triton's classification extension.

        Args:
            url: `host:port` of the gRPC API.
            spec: The spec of the model that should be served.

        Raises:
            ServerError: The server does not answer, or returns an error.
            MissingExtraError: tritonclient is not installed.
        """
        try:
            import tritonclient.grpc as triton
        except ModuleNotFoundError as error:
            raise MissingExtraError("serve", str(error.name)) from error
        self._triton: Any = triton
        self._spec = spec
        self._url = url
        # a proxy from the environment cannot reach this machine
        self._client = triton.InferenceServerClient(url, channel_args=[("grpc.enable_http_proxy", 0)])
        self.labels = self._ask_labels()

    def scores(self, images: Sequence[bytes]) -> Scores:
        """Return scores (N, num_labels) float32 of N encoded images, in one request.

        Raises:
            ServedImageError: An image has no result, or its result does not follow from its scores and the spec's
                thresholds and labels.
            ServerError: The server does not answer, or returns an error.
        """
        answer = self._ask(images, [TENSORS.scores, TENSORS.result, TENSORS.status])
        scores: Scores = answer.as_numpy(TENSORS.scores)
        results, statuses = (answer.as_numpy(name).ravel() for name in (TENSORS.result, TENSORS.status))
        thresholds = np.asarray(self._spec.thresholds, np.float32)
        for index, (row, result, status) in enumerate(zip(scores, results, statuses, strict=True)):
            if status.decode() != OK:
                raise ServedImageError(f"Expected a result for image {index} of a batch, got: {status.decode()}", index)
            expected = select_labels(row, thresholds, self._spec.labels)
            if json.loads(result) != expected:
                raise ServedImageError(
                    f"Expected the result that follows from the scores, {str(expected)[:200]}, got "
                    f"{result.decode()[:200]}.",
                    index,
                )
        return scores

    def _ask_labels(self) -> tuple[str, ...]:
        """Return the label of each class id, from an answer with `score:class id:label` for every class."""
        import cv2

        image = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
        answer = self._ask([image], [TENSORS.scores], class_count=self._spec.num_labels)
        parts = [entry.decode().split(":", 2) for entry in answer.as_numpy(TENSORS.scores).ravel()]
        return tuple(label for _, _, label in sorted(parts, key=lambda part: int(part[1])))

    def _ask(self, images: Sequence[bytes], outputs: Sequence[str], class_count: int = 0) -> Any:
        tensor = self._triton.InferInput(TENSORS.image, [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(-1, 1))
        wanted = [self._triton.InferRequestedOutput(name, class_count=class_count) for name in outputs]
        try:
            return self._client.infer(self._spec.name, [tensor], outputs=wanted, client_timeout=_TIMEOUT_S)
        except self._triton.InferenceServerException as error:
            raise ServerError(f"{self._spec.name} at {self._url}: {error}") from error
