"""Mode `predict` of a PaddleX configuration: label images with Paddle's own engine, with PaddleX's output and files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mlcls.conversion.to_onnx import find_activation
from mlcls.engines.runners import DecodingRunner, PaddleRunner, Pixels
from mlcls.errors import ImageError, MlclsError, ModelFormatError, PredictionError
from mlcls.model.postprocess import select_labels
from mlcls.paddle.parameters import check_parameters
from mlcls.paddle.sources import open_source
from mlcls.paddlex.config import PaddleXConfig

if TYPE_CHECKING:
    from mlcls.model.spec import ModelSpec
    from mlcls_client import MultiLabelResult
    from mlcls_client.inputs.sources import ImageSource


def run(config: PaddleXConfig) -> dict[str, Any]:
    """Label the images of `Predict.input`, print each result, and save it as JSON and as an annotated picture.

    `Predict.model_dir` is anything that `mlcls.paddle.sources.open_source` accepts; null means the official model. The
    result has `model_name`, `model_dir`, and `results` with the labels and files of each image.

    Raises:
        PredictionError: Some images could not be labeled; all others were, and the details have both.
        MlclsError: The client is not installed, or the model cannot be opened or run; see `open_source`.
    """
    if find_spec("mlcls_client") is None:
        raise MlclsError(
            "This needs the client, which is not installed: pip install ./client (in a checkout: make build)."
        )
    from mlcls_client import InputError, OutputError
    from mlcls_client.cli.output import ProgressBar, ResultSaver
    from mlcls_client.inputs.sources import count_images, iterate_sources

    shared, section = config.Global, config.Predict
    if not shared.device.startswith("cpu"):
        print(f"Note: mode predict runs on the CPU; Global.device is {shared.device}.", file=sys.stderr)
    where = section.model_dir or shared.model
    savers = {"json_file": ResultSaver(shared.output, "json"), "img_file": ResultSaver(shared.output, "img")}
    results: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    with open_source(where) as model:
        if model.config.model_name != shared.model:
            raise ModelFormatError(
                f"Predict.model_dir: expected a model {shared.model}, as Global.model says, got "
                f"{model.config.model_name} in {where}."
            )
        check_parameters(model.graph, model.parameters)
        spec = model.make_spec()
        spec = msgspec.structs.replace(spec, source_activation=find_activation(model.graph, model.parameters, spec))
        runner = DecodingRunner(PaddleRunner(model, spec), spec)
        sources = iterate_sources(section.input)
        with ProgressBar(None, lambda: count_images([section.input])) as progress:
            while batch := list(islice(sources, section.batch_size)):
                for source, outcome in _label(batch, runner, spec):
                    with progress.pause():
                        try:
                            if isinstance(outcome, Exception):
                                raise outcome
                            outcome.print()
                            files = {key: saver.save(outcome).name for key, saver in savers.items()}
                            results.append({**outcome.json["res"], **files})
                        except (InputError, OutputError, ImageError) as error:
                            failures.append(_report(source, error))
                    progress.advance()
    result = {"model_name": shared.model, "model_dir": where, "results": results}
    if failures:
        raise PredictionError(
            f"{section.input}: expected images that can be labeled and saved, got {len(failures)} that cannot, of "
            f"{len(results) + len(failures)}.",
            {**result, "failures": failures},
        )
    return result


def _label(
    batch: Sequence[ImageSource], runner: DecodingRunner, spec: ModelSpec
) -> Iterator[tuple[ImageSource, MultiLabelResult | Exception]]:
    """Yield a result or an error for each image, with the library's own decoding and threshold rule."""
    from mlcls_client import InputError, MultiLabelResult
    from mlcls_client.transport.contract import STATUS_OK, Answer

    images: list[tuple[bytes, Pixels] | Exception] = []
    for source in batch:
        try:
            encoded = source.read()
            images.append((encoded, runner.decode(encoded)))
        except (InputError, ImageError) as error:
            images.append(error)
    pixels = [image[1] for image in images if not isinstance(image, Exception)]
    rows = iter(runner.score_pixels(np.stack(pixels)) if pixels else ())
    thresholds = np.asarray(spec.thresholds, np.float32)
    for source, image in zip(batch, images, strict=True):
        if isinstance(image, Exception):
            yield source, image
            continue
        chosen = select_labels(next(rows), thresholds, spec.labels)
        answer = Answer(STATUS_OK, *(tuple(chosen[key]) for key in ("class_ids", "scores", "label_names")))
        path, page = source.input_path, source.page_index
        yield source, MultiLabelResult(answer, input_path=path, page_index=page, encoded_image=image[0])


def _report(source: ImageSource, error: Exception) -> dict[str, Any]:
    """Print an error with the image's path, and return its entry for the result file."""
    text = str(error)
    if source.input_path and source.input_path not in text:
        page = "" if source.page_index is None else f" page {source.page_index}"
        text = f"{source.input_path}{page}: {text}"
    print(f"error: {text}", file=sys.stderr)
    return {"input_path": source.input_path, "page_index": source.page_index, "error": text}
