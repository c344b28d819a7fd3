"""Mode `predict` of a PaddleX configuration: label images with Paddle's own engine, with PaddleX's output and files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from mlcls.errors import ConfigError, ImageError, MlclsError, ModelFormatError, PredictionError
from mlcls.paddlex.config import PaddleXConfig

if TYPE_CHECKING:
    from mlcls.engines.runners import Runner
    from mlcls.model.spec import ModelSpec
    from mlcls_client import MultiLabelResult
    from mlcls_client.inputs.sources import ImageSource

# Values of `Predict.kernel_option.run_mode`; PaddleX's others are for TensorRT, oneDNN and half precision.
RUN_MODES: Final = ("paddle",)


def predict_images(config: PaddleXConfig) -> dict[str, Any]:
    """Label the images of `Predict.input`, print each result, and save it as JSON and as an annotated picture.

    Args:
        config: The configuration. `Predict.model_dir` is anything that `mlcls.paddle.sources.open_source` accepts; null
            means the official model.

    Returns:
        The result: `model_name`, `model_dir`, and `results` with the labels and files of each image.

    Raises:
        ConfigError: A field of `Predict` is wrong.
        PredictionError: Some images could not be labeled; all others were, and the details have both.
        MlclsError: The model cannot be opened or run; see `mlcls.paddle.sources.open_source`.
    """
    _check_client()
    from mlcls.conversion.to_onnx import find_activation
    from mlcls.engines.runners import PaddleRunner
    from mlcls.paddle.parameters import check_parameters
    from mlcls.paddle.sources import open_source
    from mlcls_client.cli.terminal import ProgressBar
    from mlcls_client.inputs.sources import count_images, iterate_sources

    section = config.Predict
    _check_fields(config)
    if not config.Global.device.startswith("cpu"):
        print(f"Note: mode predict runs on the CPU; Global.device is {config.Global.device}.", file=sys.stderr)
    where = section.model_dir or config.Global.model
    log = _ResultLog(Path(config.Global.output))
    with open_source(where) as model:
        if model.config.model_name != config.Global.model:
            raise ModelFormatError(
                f"Predict.model_dir: expected a model {config.Global.model}, as Global.model says, got "
                f"{model.config.model_name} in {where}."
            )
        check_parameters(model.graph, model.parameters)
        spec = model.make_spec()
        activation = find_activation(model.graph, model.parameters, spec)
        spec = msgspec.structs.replace(spec, source_activation=activation)
        labeler = _Labeler(PaddleRunner(model, spec), spec)
        sources = iterate_sources(section.input)
        with ProgressBar(None, lambda: count_images([section.input])) as progress:
            while batch := list(islice(sources, section.batch_size)):
                for source, outcome in labeler.label(batch):
                    with progress.pause():
                        log.add(source, outcome)
                    progress.advance()
    result = {"model_name": config.Global.model, "model_dir": where, "results": log.results}
    if log.failures:
        raise PredictionError(
            f"{section.input}: expected images that can be labeled and saved, got "
            f"{len(log.failures)} that cannot, of {log.count}.",
            {**result, "failures": log.failures},
        )
    return result


class _Labeler:
    """Labels images, with the library's own decoding and threshold rule."""

    def __init__(self, runner: Runner, spec: ModelSpec) -> None:
        self._runner, self._spec = runner, spec
        self._thresholds = np.asarray(spec.thresholds, np.float32)

    def label(self, batch: Sequence[ImageSource]) -> Iterator[tuple[ImageSource, MultiLabelResult | Exception]]:
        """Label a batch and yield a result or an error for each image."""
        read = [self._read(source) for source in batch]
        pixels = [image[1] for image in read if not isinstance(image, Exception)]
        scores = iter(self._runner.scores(np.stack(pixels)) if pixels else ())
        for source, image in zip(batch, read, strict=True):
            yield source, image if isinstance(image, Exception) else self._result(source, image[0], next(scores))

    def _read(self, source: ImageSource) -> tuple[bytes, npt.NDArray[np.uint8]] | Exception:
        from mlcls.images.transforms import preprocess
        from mlcls_client import InputError

        try:
            encoded = source.read()
            return encoded, preprocess(encoded, self._spec.transform)
        except (InputError, ImageError) as error:
            return error

    def _result(self, source: ImageSource, encoded: bytes, scores: npt.NDArray[np.float32]) -> MultiLabelResult:
        from mlcls.model.postprocess import select_labels
        from mlcls_client import MultiLabelResult
        from mlcls_client.transport.contract import STATUS_OK, Answer

        chosen = select_labels(scores, self._thresholds, self._spec.labels)
        answer = Answer(STATUS_OK, *(tuple(chosen[key]) for key in ("class_ids", "scores", "label_names")))
        return MultiLabelResult(
            answer, input_path=source.input_path, page_index=source.page_index, encoded_image=encoded
        )


class _ResultLog:
    """Prints and saves results, and keeps their entries for the result file."""

    def __init__(self, output: Path) -> None:
        from mlcls_client.cli.output import ResultSaver

        self._savers = {"json": ResultSaver(output, "json"), "img": ResultSaver(output, "img")}
        self.results: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []

    @property
    def count(self) -> int:
        """Number of images so far."""
        return len(self.results) + len(self.failures)

    def add(self, source: ImageSource, outcome: MultiLabelResult | Exception) -> None:
        """Print a result and save its files; print an error, including one of saving, with the image's path."""
        from mlcls_client import InputError, OutputError

        if isinstance(outcome, Exception):
            self._fail(source, outcome)
            return
        outcome.print()
        try:
            files = {f"{kind}_file": saver.save(outcome).name for kind, saver in self._savers.items()}
        except (InputError, OutputError) as error:
            self._fail(source, error)
        else:
            self.results.append({**outcome.json["res"], **files})

    def _fail(self, source: ImageSource, error: Exception) -> None:
        page = "" if source.page_index is None else f" page {source.page_index}"
        text = str(error)
        if source.input_path and source.input_path not in text:
            text = f"{source.input_path}{page}: {text}"
        print(f"error: {text}", file=sys.stderr)
        self.failures.append({"input_path": source.input_path, "page_index": source.page_index, "error": text})


def _check_client() -> None:
    from importlib.util import find_spec

    if find_spec("mlcls_client") is None:
        raise MlclsError(
            "This needs the client, which is not installed: pip install ./client (in a checkout: make build)."
        )


def _check_fields(config: PaddleXConfig) -> None:
    section = config.Predict
    if section.batch_size < 1:
        raise ConfigError(f"Predict.batch_size: expected an integer of at least 1, got {section.batch_size}.")
    if not section.input.strip():
        raise ConfigError("Predict.input: expected an image, a folder or a URL, got an empty string.")
    run_mode = section.kernel_option.run_mode
    if run_mode not in RUN_MODES:
        raise ConfigError(
            f"Predict.kernel_option.run_mode: expected {' or '.join(RUN_MODES)}, got {run_mode!r}; other engines serve "
            f"the model after `mlcls import`."
        )
