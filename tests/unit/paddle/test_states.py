"""Paddle's saved states are read as `paddle.load` reads them, and nothing in them runs."""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcls.errors import ModelFormatError, TrainingError
from mlcls.paddle.restricted_pickle import MAX_DEPTH, read_values
from mlcls.paddle.runtime import import_paddle
from mlcls.paddle.states import read_state
from mlcls.training.architectures import load_pretrained, read_parameters
from mlcls.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def paddle() -> Any:
    module = import_paddle("train")
    module.seed(0)
    return module


class Runs:
    """What a pickle of a stranger may hold: a call that leaves a mark."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def assert_same(ours: Any, theirs: Any, paddle: Any) -> None:
    if isinstance(theirs, paddle.Tensor):
        assert isinstance(ours, paddle.Tensor)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key], paddle)
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their, paddle)
    else:
        assert type(ours) is type(theirs)
        np.testing.assert_equal(ours, theirs)


# --- what paddle writes


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    "what", ["network", "optimizer", "nested", "one tensor", "one array", "numpy", "empty", "static"]
)
def test_the_same_as_paddle_load(paddle: Any, tmp_path: Path, what: str, protocol: int) -> None:
    layers = [paddle.nn.Conv2D(3, 8, 3), paddle.nn.BatchNorm2D(8), paddle.nn.Linear(4, 5), paddle.nn.Embedding(3, 2)]
    network = paddle.nn.Sequential(*layers)
    network[1](paddle.randn([2, 8, 4, 4]))
    optimizer = paddle.optimizer.AdamW(
        paddle.optimizer.lr.CosineAnnealingDecay(0.1, 10), parameters=network.parameters()
    )
    network[0](paddle.randn([1, 3, 4, 4])).sum().backward()
    optimizer.step()
    content = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "nested": {"epoch": 3, "score": 0.5, "weights": network.state_dict(), "rows": [(1, 2.5, None), ("a", True)]},
        "one tensor": paddle.to_tensor([[1, 2], [3, 4]], dtype="int64"),
        "one array": np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4)),
        "numpy": {
            "scalar": np.float64(0.25),
            "int": np.int32(7),
            "big": np.arange(3, dtype=">f4"),
            "bool": np.array([True]),
            "empty": np.zeros((0, 3), np.float32),
            "zero dims": np.array(2.5),
            "ordered": collections.OrderedDict(a=np.ones(2, np.float32)),
        },
        "empty": {},
        # what paddle's own pickler makes of a tensor of a static graph
        "static": {"w": Runs(eval, "data", {"data": np.arange(6, dtype=np.float32).reshape(2, 3)})},
    }[what]
    path = tmp_path / "state.pdparams"
    paddle.save(content, str(path), protocol=protocol)
    assert_same(read_state(path), paddle.load(str(path)), paddle)


def test_tensors_have_their_names_and_can_be_changed(paddle: Any, tmp_path: Path) -> None:
    network = paddle.nn.Linear(2, 2)
    paddle.save(network.state_dict(), str(tmp_path / "w"))
    weight = read_state(tmp_path / "w")["weight"]
    assert weight.name == network.weight.name
    weight.set_value(paddle.zeros([2, 2]))
    assert weight.sum().item() == 0


def test_arrays_that_were_cut_for_an_old_protocol(paddle: Any, tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float32)
    cut = {
        "w@@.0": whole[:7],
        "w@@.1": whole[7:],
        "UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}},
    }
    (tmp_path / "w").write_bytes(pickle.dumps(cut, protocol=2))
    state = read_state(tmp_path / "w")
    assert list(state) == ["w"]
    np.testing.assert_array_equal(state["w"].numpy(), whole.reshape(3, 4))


# --- what strangers write


def hostile_pickles(mark: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would leave a mark, or hurt in another way, and the words of the refusal."""
    import os

    touch = f"open({str(mark)!r}, 'w')"
    array = np.ones(2, np.float32)
    objects = np.array([1, "a"], dtype=object)
    structured = np.zeros(1, dtype=[("a", "<f4")])
    recursive: dict[str, Any] = {}
    recursive["again"] = recursive
    wide: list[Any] = []
    for _ in range(20):
        wide = [wide] * 10
    deep: list[Any] = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    plain = {
        "eval": (Runs(eval, touch), "a call of eval"),
        "eval with other names": (Runs(eval, "data", {"data": array, "__builtins__": {}}), "a call of eval"),
        "system": (Runs(os.system, f"touch {mark}"), r"the name 'posix\.system'"),
        "getattr": (Runs(getattr, "a", "upper"), r"the name 'builtins\.getattr'"),
        "numpy.load": (Runs(np.load, str(mark)), r"the name 'numpy\."),
        "array of objects": (objects, "an array of the type 'O8'"),
        "structured array": (structured, "an array of the type 'V4'"),
        "class": ({"a": np.ndarray}, "a marker on its own"),
        "set": ({"a": {1, 2}}, "a set on its own"),
        "bytes as a key": ({b"a": 1}, "keys that are neither"),
        "recursive": (recursive, "containers more than"),
        "deep": (deep, "containers more than"),
        "wide": (wide, "or more than"),
        "in an array's place": ({"a": array, "b": Runs(os.system, f"touch {mark}")}, r"the name 'posix\.system'"),
    }
    written = {name: (pickle.dumps(value, protocol=4), words) for name, (value, words) in plain.items()}
    stream = io.BytesIO()
    persistent = pickle.Pickler(stream, protocol=4)
    persistent.persistent_id = lambda value: "file" if value == "outside" else None  # type: ignore[method-assign]
    persistent.dump({"a": "outside"})
    empty = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tVb\ntR"
    code = b"cnumpy\ndtype\n(Vf4\nI00\nI01\ntR(K\x03V<\nNNNK\xffK\xffK\x00tb"
    return {
        **written,
        "persistent": (stream.getvalue(), "something outside the file"),
        "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0fcore.os.system.\x93.", "the name "),
        "too few bytes": (
            empty + b"(K\x01(M\xe8\x03t" + code + b"I00\nC\x04abcdtb.",
            r"4 bytes for an array of the shape \[1000\]",
        ),
        "negative shape": (empty + b"(K\x01(I-1\nt" + code + b"I00\nC\x04abcdtb.", "an array of the shape"),
        "another class for an array": (empty.replace(b"ndarray", b"dtype") + b".", "a class that is not numpy.ndarray"),
        "array without content": (empty + b".", "an array without content"),
        "a changed function": (b"\x80\x04cbuiltins\neval\n}V__code__\nK\x01sb.", "a changed class"),
        "a changed class": (b"\x80\x04cnumpy\nndarray\n}Va\nK\x01sb.", "a changed class"),
        "cut off": (pickle.dumps({"a": array})[:-9], "or a damaged one"),
        "no pickle": (b"PK\x03\x04 a zip", "or a damaged one"),
        "empty file": (b"", "or a damaged one"),
        "a memo of four billion": (b"\x80\x04K\x01r\xff\xff\xff\xff.", ""),
        "a text of sixteen exabytes": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.", "or a damaged one"),
    }


HOSTILE = sorted(hostile_pickles(Path("mark")))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    content, words = hostile_pickles(mark)[name]
    path = tmp_path / "weights.pdparams"
    path.write_bytes(content)
    if name == "a memo of four billion":
        with contextlib.suppress(ModelFormatError):  # no memory for it; much memory reads the number
            assert read_values(path) == 1
    else:
        with pytest.raises(ModelFormatError, match=words) as caught:
            read_values(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    assert not mark.exists()


def test_the_hostile_files_are_hostile(tmp_path: Path) -> None:
    for name in ("eval", "system", "in an array's place"):
        mark = tmp_path / name.replace(" ", "").replace("'", "")
        pickle.loads(hostile_pickles(mark)[name][0])
        assert mark.exists()


def test_every_reader_refuses_it(paddle: Any, tmp_path: Path) -> None:
    """Weights to start from, trained weights, and each file of a checkpoint."""
    mark = tmp_path / "mark"
    hostile = hostile_pickles(mark)["in an array's place"][0]
    weights = tmp_path / "weights.pdparams"
    weights.write_bytes(hostile)
    for read in (read_parameters, lambda path: load_pretrained(paddle.nn.Linear(2, 2), str(path))):
        with pytest.raises(ModelFormatError, match=r"posix\.system"):
            read(weights)
    state = {"a": paddle.ones([1])}
    for suffix in ("pdparams", "pdema", "pdopt", "pdstates"):
        write_checkpoint(tmp_path / "latest", Checkpoint(state, state, state, {}))
        (tmp_path / "latest" / f"latest.{suffix}").write_bytes(hostile)
        with pytest.raises(TrainingError, match=r"posix\.system"):
            read_checkpoint(tmp_path / "latest")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"StructuredToParameterName@@": {"a": "b"}},
        {"UnpackBigParamInfor@@": {"w": {"slices": ["x"]}}},
        {"UnpackBigParamInfor@@": 3},
    ],
)
def test_parts_that_do_not_fit_together(tmp_path: Path, content: Any) -> None:
    (tmp_path / "w").write_bytes(pickle.dumps(content))
    with pytest.raises(ModelFormatError, match="do not fit together"):
        read_state(tmp_path / "w")


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="expected a file that paddle"):
        read_state(tmp_path / "none.pdparams")
