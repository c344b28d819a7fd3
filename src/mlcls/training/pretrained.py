"""Load pretrained weights, with a report of what was done with each parameter."""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class PretrainedReport:
    """What was done with a file of weights.

    Attributes:
        source: The given path or URL.
        loaded: Names of the parameters that were loaded.
        replaced: Reasons, by name, for parameters of the head left fresh because the number of labels differs.
        missing: Names of the network's parameters that the file does not have; they are left fresh.
        unknown: Names of the file's parameters that the network does not have; they are not used.
    """

    source: str
    loaded: tuple[str, ...]
    replaced: dict[str, str]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the report as lines for the log."""
        total = len(self.loaded) + len(self.replaced) + len(self.missing)
        lines = [f"Pretrained weights {self.source}: loaded {len(self.loaded)} of {total} parameters."]
        lines += [f"  fresh: {name}: {reason}" for name, reason in self.replaced.items()]
        if self.missing:
            lines.append(f"  fresh: {len(self.missing)} that the file does not have: {_names(self.missing)}")
        if self.unknown:
            lines.append(f"  not used: {len(self.unknown)} that the network does not have: {_names(self.unknown)}")
        return lines


def is_url(source: str) -> bool:
    """Return whether a source is an http(s) URL and not a path."""
    return re.match(r"(?i)https?://", source) is not None


def find_weights(source: str, field: str = "pretrain_weight_path") -> Path:
    """Return the path of a file of weights; a URL is downloaded into the cache.

    Args:
        source: The path or URL.
        field: Name of the setting, for the error.

    Raises:
        TrainingError: There is no such file.
        DownloadError: The URL could not be fetched.
    """
    if is_url(source):
        from mlcls.base.download import fetch

        return fetch(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise TrainingError(f"{field}: expected a .pdparams file or its URL, got {source!r}, which does not exist.")
    return path


def load_pretrained(network: paddle.nn.Layer, source: str) -> PretrainedReport:
    """Load the weights that fit into the network, in place.

    The head's parameters that depend on the labels are left fresh if the file is for another number of labels.

    Args:
        network: A network with fresh weights.
        source: A `.pdparams` file, or its URL.

    Raises:
        TrainingError: The file is missing, or its parameters are those of another architecture.
        ModelFormatError: It is not a parameter file.
        DownloadError: The URL could not be fetched.
    """
    state = read_parameters(find_weights(source))
    expected: dict[str, Any] = network.state_dict()
    loaded: dict[str, Any] = {}
    replaced: dict[str, str] = {}
    for name, parameter in expected.items():
        if name not in state:
            continue
        have, want = list(state[name].shape), list(parameter.shape)
        if have == want:
            loaded[name] = state[name]
        elif name.endswith(_LABEL_PARAMETERS):
            replaced[name] = f"the file's has the shape {have}, these labels need {want}"
        else:
            raise TrainingError(
                f"{source}: parameter {name} has the shape {have}, expected {want}; use weights of the same "
                f"architecture."
            )
    share = sum(expected[name].size for name in loaded) / sum(parameter.size for parameter in expected.values())
    missing = tuple(name for name in expected if name not in state)
    unknown = tuple(sorted(set(state) - set(expected)))
    if share < _LEAST_SHARE:
        raise TrainingError(
            f"{source}: expected weights of this architecture, got a file with {len(loaded)} of its {len(expected)} "
            f"parameters ({share:.0%} of its weights); it has {_names(unknown)}."
        )
    # one by one, since set_state_dict warns about each missing parameter
    for name, value in loaded.items():
        expected[name].set_value(value)
    return PretrainedReport(source, tuple(loaded), replaced, missing, unknown)


def _names(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return (", ".join(names[:_LISTED_NAMES]) or "none") + more
