"""Load pretrained weights, and tell what was done with each parameter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlcls.errors import TrainingError
from mlcls.training.architectures import read_parameters

if TYPE_CHECKING:
    import paddle

# Parameters of the ML-Decoder head whose shape depends on the number of labels or queries.
_LABEL_PARAMETERS: Final = ("query_pos_embed.weight", "group_conv.weight", "group_conv.bias")
# Least share of the network's weights that a file must have; an ImageNet backbone without the head has more.
_LEAST_SHARE: Final = 0.1
_LISTED_NAMES: Final = 6


def is_url(source: str) -> bool:
    """Return whether a source is an http(s) URL and not a path."""
    return re.match(r"(?i)https?://", source) is not None


def find_weights(source: str | None, field: str = "pretrain_weight_path") -> Path:
    """Return the path of a file of weights, given its path or URL; a URL is downloaded into the cache.

    Raises:
        TrainingError: There is no such file; the text names the setting, `field`.
        DownloadError: The URL could not be fetched.
    """
    if source and is_url(source):
        from mlcls.base.download import fetch

        return fetch(source)
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
    share = sum(expected[name].size for name in loaded) / sum(parameter.size for parameter in expected.values())
    missing = [name for name in expected if name not in state]
    unknown = sorted(set(state) - set(expected))
    if share < _LEAST_SHARE:
        raise TrainingError(
            f"{source}: expected weights of this architecture, got a file with {len(loaded)} of its {len(expected)} "
            f"parameters ({share:.0%} of its weights); it has {_names(unknown)}."
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


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return (", ".join(names[:_LISTED_NAMES]) or "none") + more
