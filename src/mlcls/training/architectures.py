"""The six architectures, built by PaddleClas, so that parameter names are those of the official `.pdparams`."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcls.catalog import official_model
from mlcls.errors import MissingExtraError, ModelFormatError
from mlcls.paddle_runtime import import_paddle

if TYPE_CHECKING:
    import paddle


def build_network(architecture: str, num_labels: int, query_num: int | None = None) -> paddle.nn.Layer:
    """Builds a network with fresh weights drawn from paddle's global generator (see `paddle.seed`).

    Args:
        architecture: Name of one of the six models.
        num_labels: Number of outputs.
        query_num: Decoder queries, at most `num_labels`; by default one for each label, as PaddleX trains.

    Returns:
        A network in evaluation mode: (N, 3, H, W) float32 to logits (N, num_labels) float32.

    Raises:
        ModelFormatError: The architecture is none of the six.
        MissingExtraError: paddleclas is not installed.
    """
    model = official_model(architecture)
    build_model = _import_build_model()
    network = build_model(
        {
            "Arch": {
                "name": model.backbone,
                "class_num": num_labels,
                "pretrained": False,
                "use_ml_decoder": True,
                **model.arch_options,
            },
            "MLDecoder": {
                "query_num": num_labels if query_num is None else query_num,
                "class_num": num_labels,
                "in_channels": model.decoder_channels,
                **model.decoder_options,
            },
        },
        mode="export",
    )
    network.eval()
    return network


def find_decoder(network: paddle.nn.Layer) -> Any:
    """The ML-Decoder head of a network (PaddleClas's `MLDecoder`)."""
    decoders = [layer for layer in network.sublayers() if type(layer).__name__ == "MLDecoder"]
    if len(decoders) != 1:
        raise ModelFormatError(f"Expected a network with one ML-Decoder head, got {len(decoders)} of them.")
    return decoders[0]


def load_trained_network(architecture: str, num_labels: int, weights: Path) -> paddle.nn.Layer:
    """Builds a network and loads all its parameters from a `.pdparams` file.

    Raises:
        ModelFormatError: The file is no parameter file, or its parameters are not exactly those of the network.
    """
    state = read_parameters(weights)
    network = build_network(architecture, num_labels, query_num=_query_num(state))
    expected = network.state_dict()
    missing = sorted(set(expected) - set(state))
    unknown = sorted(set(state) - set(expected))
    if missing or unknown:
        raise ModelFormatError(
            f"{weights}: expected the {len(expected)} parameters of {architecture}, got {len(state)}; "
            f"missing {len(missing)} ({', '.join(missing[:3]) or 'none'}), "
            f"unknown {len(unknown)} ({', '.join(unknown[:3]) or 'none'}). Give the architecture that was trained."
        )
    for name, parameter in expected.items():
        if list(parameter.shape) != list(state[name].shape):
            raise ModelFormatError(
                f"{weights}: parameter {name} has the shape {list(state[name].shape)}, expected "
                f"{list(parameter.shape)} for {num_labels} labels. Give the label list that was trained."
            )
    network.set_state_dict(state)
    network.eval()
    return network


def read_parameters(path: Path) -> dict[str, Any]:
    """Reads a `.pdparams` file.

    Returns:
        Tensors by structured name.

    Raises:
        ModelFormatError: The file is none.
    """
    paddle = import_paddle("train")
    try:
        state = paddle.load(str(path))
    except Exception as error:  # paddle raises whatever its reader stumbles over
        raise ModelFormatError(f"{path}: expected a .pdparams file of paddle, got none ({error}).") from None
    if not isinstance(state, dict) or not state or not all(hasattr(value, "shape") for value in state.values()):
        raise ModelFormatError(f"{path}: expected parameters by name, got {type(state).__name__}.")
    return state


def _query_num(state: dict[str, Any]) -> int | None:
    for name, value in state.items():
        if name.endswith("query_pos_embed.weight"):
            return int(value.shape[0])
    return None


def _import_build_model() -> Any:
    import_paddle("train")
    logging.getLogger("faiss").setLevel(logging.ERROR)  # paddleclas imports faiss, which reports each step of its own
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from paddleclas.ppcls.arch import build_model
            from paddleclas.ppcls.utils import logger
    except ModuleNotFoundError as error:
        raise MissingExtraError("train", str(error.name)) from error
    logger.init_logger(log_level=logging.WARNING)  # ResNet50 logs while it is built and fails without a logger
    return build_model
