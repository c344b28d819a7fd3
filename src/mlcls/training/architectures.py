"""The six architectures, built by PaddleClas so that parameter names are those of the official `.pdparams`."""

from __future__ import annotations

import contextlib
import io
import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlcls.errors import MissingExtraError, ModelFormatError
from mlcls.model.catalog import official_model
from mlcls.paddle.runtime import import_paddle
from mlcls.paddle.states import read_state

if TYPE_CHECKING:
    import paddle

# Widths of PaddleClas's PP-LCNet, as factors of its channels; the official model's is 1.0.
PPLCNET_SCALES: Final = (0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5)
# PaddleClas's defaults for `MLDecoder`, those of the official models.
DECODER_WIDTH: Final = 768
_DECODER_HEADS: Final = 8
_HIDDEN_RATIO: Final = 8 / 3

_PPLCNET: Final = "PPLCNet_x1_0"
# Pointwise convolution of its last block; the number of outputs (512 at 1.0) tells the scale of a file of weights.
_PPLCNET_LAST: Final = "blocks6.1.pw_conv.conv.weight"
_PPLCNET_LAST_CHANNELS: Final = 512
_QUERIES: Final = "query_pos_embed.weight"


def build_network(
    architecture: str,
    num_labels: int,
    query_num: int | None = None,
    *,
    backbone_scale: float = 1.0,
    decoder_width: int = DECODER_WIDTH,
    seed: int = 0,
) -> paddle.nn.Layer:
    """Build a network with fresh weights: (N, 3, H, W) float32 to logits (N, num_labels), in evaluation mode.

    Args:
        architecture: Name of one of the six models.
        num_labels: Number of outputs.
        query_num: Decoder queries, at most `num_labels`; by default one for each label, as PaddleX trains.
        backbone_scale: Factor of the backbone's channels, one of `PPLCNET_SCALES`; other than 1 for PP-LCNet only.
        decoder_width: Width of the ML-Decoder's embeddings, a multiple of 24; its hidden layer is 8/3 as wide.
        seed: Seed of the weights, and of what is drawn next from paddle's global generator.

    Raises:
        ModelFormatError: The architecture is not one of the six, or does not come in this size.
        MissingExtraError: paddleclas is not installed.
    """
    check_scale(architecture, backbone_scale)
    model = official_model(architecture)
    backbone = model.backbone
    if backbone == _PPLCNET:
        backbone = f"PPLCNet_x{str(float(backbone_scale)).replace('.', '_')}"
    backbone_options = {"class_num": num_labels, "pretrained": False, "use_ml_decoder": True, **model.arch_options}
    decoder_options = {
        "query_num": num_labels if query_num is None else query_num,
        "class_num": num_labels,
        "in_channels": model.decoder_channels,
        "embed_dim": decoder_width,
        "num_heads": _DECODER_HEADS,
        "mlp_hidden_dim": round(decoder_width * _HIDDEN_RATIO),
        **model.decoder_options,
    }
    config = {"Arch": {"name": backbone, **backbone_options}, "MLDecoder": decoder_options}
    build_model = _import_build_model()
    with _seeded(seed):
        network = build_model(config, mode="export")
    network.eval()
    return network


def check_scale(architecture: str, backbone_scale: float) -> None:
    """Check that an architecture comes in this size.

    Raises:
        ModelFormatError: It does not, or is not one of the six.
    """
    scales = PPLCNET_SCALES if official_model(architecture).backbone == _PPLCNET else (1.0,)
    if backbone_scale not in scales:
        raise ModelFormatError(
            f"backbone_scale: expected {' or '.join(map(str, scales))} for {architecture}, got {backbone_scale!r}."
        )


def find_size(architecture: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return, as arguments of `build_network`, what a network's weights tell of its size."""
    size: dict[str, Any] = {}
    if official_model(architecture).backbone == _PPLCNET and _PPLCNET_LAST in state:
        scale = int(state[_PPLCNET_LAST].shape[0]) / _PPLCNET_LAST_CHANNELS
        # channels are rounded to multiples of 8
        size["backbone_scale"] = min(PPLCNET_SCALES, key=lambda known: abs(known - scale))
    for name, value in state.items():
        if name.endswith(_QUERIES):
            size["query_num"] = int(value.shape[0])
            if len(value.shape) == 2 and int(value.shape[1]) % 24 == 0:
                size["decoder_width"] = int(value.shape[1])
    return size


def load_trained_network(architecture: str, num_labels: int, weights: Path) -> paddle.nn.Layer:
    """Build a network of the size that the file has, and load all its parameters from a `.pdparams` file.

    Raises:
        ModelFormatError: The file is not a parameter file, or its parameters are not exactly those of the network.
    """
    state = read_parameters(weights)
    network = build_network(architecture, num_labels, **find_size(architecture, state))
    expected = network.state_dict()
    missing = sorted(set(expected) - set(state))
    unknown = sorted(set(state) - set(expected))
    if missing or unknown:
        raise ModelFormatError(
            f"{weights}: expected the {len(expected)} parameters of {architecture}, got {len(state)}; "
            f"missing {len(missing)} ({', '.join(missing[:3]) or 'none'}), "
            f"unknown {len(unknown)} ({', '.join(unknown[:3]) or 'none'}). Use the architecture that was trained."
        )
    for name, parameter in expected.items():
        if list(parameter.shape) != list(state[name].shape):
            raise ModelFormatError(
                f"{weights}: parameter {name} has the shape {list(state[name].shape)}, expected "
                f"{list(parameter.shape)} for {num_labels} labels. Use the label list that was trained."
            )
    network.set_state_dict(state)
    return network


def read_parameters(path: Path) -> dict[str, Any]:
    """Return the tensors of a `.pdparams` file by structured name.

    Raises:
        ModelFormatError: The file is not a `.pdparams` file, or names code that reading it would run.
    """
    state: Any = read_state(path)
    if not isinstance(state, dict) or not state or not all(hasattr(value, "shape") for value in state.values()):
        raise ModelFormatError(f"{path}: expected parameters by name, got {type(state).__name__}.")
    return state


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all generators that paddleclas draws from; those of numpy and Python, the caller's, are as before after."""
    import paddle

    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        for set_seed in (paddle.seed, np.random.seed, random.seed):
            set_seed(seed % 2**32)
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _import_build_model() -> Any:
    import_paddle("train")
    logging.getLogger("faiss").setLevel(logging.ERROR)  # paddleclas imports faiss, which logs its loading
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from paddleclas.ppcls.arch import build_model
            from paddleclas.ppcls.utils import logger
    except ModuleNotFoundError as error:
        raise MissingExtraError("train", str(error.name)) from error
    logger.init_logger(log_level=logging.WARNING)  # ResNet50 logs while it is built and fails without a logger
    return build_model
