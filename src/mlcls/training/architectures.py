"""The six architectures, built by PaddleClas so that parameters have the official names, and their weights."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlcls.errors import MissingExtraError, ModelFormatError, TrainingError
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
# Parameters of the ML-Decoder head whose shape depends on the number of labels or queries.
_LABEL_PARAMETERS: Final = ("query_pos_embed.weight", "group_conv.weight", "group_conv.bias")
# Weights of the backbones, trained on ImageNet (CLIP's: on pairs of images and texts), that PaddleClas starts from.
_BACKBONES_URL: Final = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph"
_BACKBONE_FILES: Final[Mapping[str, str]] = {
    "CLIP_vit_base_patch16_224": "foundation_models/CLIP_vit_base_patch16_224",
    "PPHGNetV2_B0": "legendary_models/PPHGNetV2_B0_ssld_stage1_pretrained",
    "PPHGNetV2_B4": "legendary_models/PPHGNetV2_B4_ssld_stage1_pretrained",
    "PPHGNetV2_B6": "legendary_models/PPHGNetV2_B6_ssld_stage1_pretrained",
    "ResNet50": "legendary_models/ResNet50_pretrained",
}
# Least share of a file's parameters that the network must have; of an ImageNet backbone, all but the classifier's.
_LEAST_SHARE: Final = 0.5
_LISTED_NAMES: Final = 6


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
    backbone = _backbone_name(architecture, backbone_scale)
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


def backbone_url(architecture: str, backbone_scale: float = 1.0) -> str:
    """Return the URL of the weights that PaddleClas starts from when nothing is said: those of the backbone alone."""
    name = _backbone_name(architecture, backbone_scale)
    return f"{_BACKBONES_URL}/{_BACKBONE_FILES.get(name, f'legendary_models/{name}_pretrained')}.pdparams"


def _backbone_name(architecture: str, backbone_scale: float) -> str:
    """Return PaddleClas's name of a backbone, which is that of the function that builds it."""
    backbone = official_model(architecture).backbone
    return f"PPLCNet_x{str(float(backbone_scale)).replace('.', '_')}" if backbone == _PPLCNET else backbone


def check_scale(architecture: str, backbone_scale: float) -> None:
    """Check that an architecture comes in this size.

    Raises:
        ModelFormatError: It does not, or is not one of the six.
    """
    scales = PPLCNET_SCALES if official_model(architecture).backbone == _PPLCNET else (1.0,)
    if backbone_scale not in scales:
        raise ModelFormatError(
            f"Train.backbone_scale: expected {' or '.join(map(str, scales))} for {architecture}, got "
            f"{backbone_scale!r}."
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


def is_url(source: str) -> bool:
    """Return whether a source is an http(s) URL and not a path."""
    return re.match(r"(?i)https?://", source) is not None


def find_weights(source: str | None, field: str = "Train.pretrain_weight_path") -> Path:
    """Return the path of a file of weights, given its path or URL; a URL is downloaded into the cache.

    Raises:
        TrainingError: There is no such file; the text names the setting, `field`.
        DownloadError: The URL could not be fetched.
    """
    if source and is_url(source):
        from mlcls.base.download import fetch

        return fetch(source, f"-o {field}={{}}")
    if not source or not (path := Path(source).expanduser()).is_file():
        got = f"{source!r}, which does not exist" if source else "none"
        raise TrainingError(f"{field}: expected a .pdparams file or its URL, got {got}.")
    return path


def load_pretrained(network: paddle.nn.Layer, source: str) -> list[str]:
    """Load the weights that fit into the network, in place; return lines for the log that tell what was and was not.

    The head's parameters that depend on the labels are left fresh if the file is for another number of labels.

    Raises:
        TrainingError: The file is missing, or its parameters are those of another architecture.
        ModelFormatError: It is not a parameter file.
        DownloadError: The URL could not be fetched.
    """
    state = read_parameters(find_weights(source))
    expected: dict[str, Any] = network.state_dict()
    loaded: dict[str, Any] = {}
    lines = []
    for name in (name for name in expected if name in state):
        have, want = list(state[name].shape), list(expected[name].shape)
        if have == want:
            loaded[name] = state[name]
        elif name.endswith(_LABEL_PARAMETERS):
            lines.append(f"  fresh: {name}: the file's has the shape {have}, these labels need {want}")
        else:
            raise TrainingError(
                f"{source}: parameter {name} has the shape {have}, expected {want}; use weights of the same "
                f"architecture."
            )
    missing = [name for name in expected if name not in state]
    unknown = sorted(set(state) - set(expected))
    if len(unknown) > _LEAST_SHARE * len(state):
        raise TrainingError(
            f"{source}: expected weights of this architecture, got a file with {len(loaded)} of its {len(expected)} "
            f"parameters; it has {_names(unknown)}."
        )
    # one by one, since set_state_dict warns about each missing parameter
    for name, value in loaded.items():
        expected[name].set_value(value)
    lines = [f"Pretrained weights {source}: loaded {len(loaded)} of {len(expected)} parameters.", *lines]
    if missing:
        lines.append(f"  fresh: {len(missing)} that the file does not have: {_names(missing)}")
    if unknown:
        lines.append(f"  not used: {len(unknown)} that the network does not have: {_names(unknown)}")
    return lines


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


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return (", ".join(names[:_LISTED_NAMES]) or "none") + more
