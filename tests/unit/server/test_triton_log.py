"""The reason why a server ended, from real logs of tritonserver 2.51 (paths and process ids shortened)."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlcls.server.logs import STANDARD_OUTPUT, describe_end, find_reason

# At every start on a machine without a GPU; harmless.
START = """\
2026-11-24T16:08:35Z W 4406 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory, pinned memory \
pool will not be available: CUDA driver version is insufficient for CUDA runtime version"
2026-11-24T16:08:35Z I 4406 cuda_memory_manager.cc:117] "CUDA memory pool disabled"
2026-11-24T16:08:35Z E 4406 server.cc:241] "CudaDriverHelper has not been initialized."
2026-11-24T16:08:35Z I 4406 model_lifecycle.cc:472] "loading: M_engine:1"
"""

# After the models; harmless too.
END = """\
2026-11-24T16:08:36Z I 4406 server.cc:604]\x20
+------------------+------+
| Repository Agent | Path |
+------------------+------+

Error: Failed to initialize NVML
2026-11-24T16:08:36Z W 4406 metrics.cc:798] "DCGM unable to start: DCGM initialization error"
2026-11-24T16:08:36Z I 4406 metrics.cc:770] "Collecting CPU metrics"
2026-11-24T16:08:36Z I 4406 server.cc:305] "Waiting for in-flight requests to complete."
2026-11-24T16:08:36Z I 4406 server.cc:345] "Timeout 30: Found 0 live models and 0 in-flight non-inference requests"
"""

WRONG_FILE = (
    "RepositoryError: /m/M_engine/1/model.onnx is not the file that its manifest was written for (its size or "
    "SHA-256 differs): damaged, edited, or copied from another model; import the model again."
)
MISSING_SPEC = (
    "SpecError: /m/M_preprocess/1/model_spec.json does not exist; import the model first: mlcls import MODEL."
)

WRONG_FILE_LOG = f"""\
{START}\
2026-11-24T16:08:36Z E 4406 backend_model.cc:692] "ERROR: Failed to create instance: {WRONG_FILE}\\n\\nAt:\\n  \
/src/mlcls/manifest.py(180): verify_folder\\n  /b/mlcls_engine/model.py(22): initialize\\n"
2026-11-24T16:08:36Z E 4406 model_lifecycle.cc:642] "failed to load 'M_engine' version 1: Internal: {WRONG_FILE}\\n\
\\nAt:\\n  /src/mlcls/manifest.py(180): verify_folder\\n  /b/mlcls_engine/model.py(22): initialize\\n"
2026-11-24T16:08:36Z I 4406 model_lifecycle.cc:777] "failed to load 'M_engine'"
2026-11-24T16:08:36Z E 4406 model_repository_manager.cc:703] "Invalid argument: ensemble 'M' depends on 'M_engine' \
which has no loaded version. Model 'M_engine' loading failed with error: version 1 is at UNAVAILABLE state: Internal: \
{WRONG_FILE}\\n\\nAt:\\n  /src/mlcls/manifest.py(180): verify_folder\\n;"
{END}\
error: creating server: Invalid argument - load failed for model 'M': ensemble 'M' depends on 'M_engine' which has no \
loaded version. Model 'M_engine' loading failed with error: version 1 is at UNAVAILABLE state: Internal: {WRONG_FILE}

At:
  /src/mlcls/manifest.py(180): verify_folder
  /b/mlcls_engine/model.py(22): initialize
;
"""

MISSING_SPEC_LOG = f"""\
{START}\
2026-11-24T16:08:40Z E 4571 backend_model.cc:692] "ERROR: Failed to create instance: {MISSING_SPEC}\\n\\nAt:\\n  \
/src/mlcls/model_spec.py(199): read\\n  /b/mlcls_preprocess/model.py(20): initialize\\n"
2026-11-24T16:08:40Z E 4571 model_lifecycle.cc:642] "failed to load 'M_preprocess' version 1: Internal: \
{MISSING_SPEC}\\n\\nAt:\\n  /src/mlcls/model_spec.py(199): read\\n"
{END}\
error: creating server: Invalid argument - load failed for model 'M_preprocess': version 1 is at UNAVAILABLE state: \
Internal: {MISSING_SPEC}

At:
  /src/mlcls/model_spec.py(199): read
  /b/mlcls_preprocess/model.py(20): initialize
;
"""

NO_VERSION_LOG = f"""\
{START}\
2026-11-24T16:08:41Z E 4599 model_repository_manager.cc:724] "failed to load model 'M_preprocess': at least one \
version must be available under the version policy of model 'M_preprocess'"
{END}\
error: creating server: Invalid argument - load failed for model 'M_preprocess': at least one version must be \
available under the version policy of model 'M_preprocess'
"""

NO_BACKEND_LOG = f"""\
{START}\
2026-11-24T16:08:42Z E 4611 model_lifecycle.cc:642] "failed to load 'M_engine' version 1: Invalid argument: unable to \
find backend library for backend 'onnxruntime', try specifying runtime on the model configuration."
{END}\
error: creating server: Invalid argument - load failed for model 'M_engine': version 1 is at UNAVAILABLE state: \
Invalid argument: unable to find backend library for backend 'onnxruntime', try specifying runtime on the model \
configuration.;
"""

BAD_CONFIG_LOG = f"""\
{START}\
[libprotobuf ERROR /build/protobuf/src/google/protobuf/text_format.cc:337] Error parsing text-format \
inference.ModelConfig: 2:6: Message type "inference.ModelConfig" has no field named "bogus".
2026-11-24T16:08:43Z E 4627 model_repository_manager.cc:1460] "Poll failed for model directory 'M': failed to read \
text proto from /m/M/config.pbtxt"
{END}\
error: creating server: Internal - failed to load all models
"""


def port_log(service: str) -> str:
    return f"""\
{START}\
2026-11-24T16:10:11Z I 7390 model_lifecycle.cc:839] "successfully loaded 'M'"
{END}\
2026-11-24T16:10:11Z I 7390 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:8001"
2026-11-24T16:10:11Z E 7390 main.cc:257] "failed to start {service} service: Unavailable - Socket '127.0.0.1:8000' \
already in use "
"""


@pytest.mark.parametrize("log", ["", START, END, START + END, "\n", "Error: Failed to initialize NVML\n", "\0\xff"])
def test_log_without_reason(log: str) -> None:
    assert find_reason(log) is None


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (WRONG_FILE_LOG, WRONG_FILE),
        (MISSING_SPEC_LOG, MISSING_SPEC),
        (NO_VERSION_LOG, "at least one version must be available under the version policy of model 'M_preprocess'"),
        (NO_BACKEND_LOG, "unable to find backend library for backend 'onnxruntime'"),
    ],
)
def test_model_that_does_not_load(log: str, reason: str) -> None:
    found = find_reason(log)
    assert found is not None
    assert reason in found
    assert "\n" not in found
    assert "Cuda" not in found
    assert not found.startswith(("error", "E ", '"'))


@pytest.mark.parametrize("service", ["HTTP", "GRPC", "Metrics"])
def test_port_that_is_taken(service: str) -> None:
    reason = find_reason(port_log(service))
    assert reason is not None
    assert reason == f"failed to start {service} service: Unavailable - Socket '127.0.0.1:8000' already in use"


def test_cause_goes_before_what_follows_from_it() -> None:
    """`failed to load all models` alone is no help."""
    reason = find_reason(BAD_CONFIG_LOG)
    assert reason is not None
    assert "failed to read text proto from /m/M/config.pbtxt" in reason


def test_error_line_without_a_last_word() -> None:
    """A server that is killed writes no `error: ` line."""
    log = WRONG_FILE_LOG[: WRONG_FILE_LOG.index("error: creating")]
    reason = find_reason(log)
    assert reason is not None
    assert WRONG_FILE in reason
    assert "\\n" not in reason


def test_failure_of_the_gpu_is_a_reason() -> None:
    """What is harmless on a machine without a GPU is the cause if the engine needs one."""
    log = "error: creating server: Internal - load failed for model 'M_engine': CUDA error: out of memory\n"
    assert find_reason(log) == "creating server: Internal - load failed for model 'M_engine': CUDA error: out of memory"


def test_reason_is_not_endless() -> None:
    found = find_reason(f"error: {'x' * 10_000}\n")
    assert found is not None
    assert 100 < len(found) <= 600


def test_first_error_counts() -> None:
    assert find_reason("error: the cause\nerror: what follows\n") == "the cause"


# --- describe_end


def write_log(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tritonserver.log"
    path.write_text(text, encoding="utf-8")
    return path


def test_end_with_reason(tmp_path: Path) -> None:
    text = describe_end(write_log(tmp_path, NO_BACKEND_LOG), 1)
    assert text.startswith("tritonserver ended with exit status 1: ")
    assert "unable to find backend library for backend 'onnxruntime'" in text
    assert "\n" not in text


@pytest.mark.parametrize(("status", "how"), [(0, "exit status 0"), (137, "exit status 137"), (-9, "signal 9")])
def test_end_without_reason(tmp_path: Path, status: int, how: str) -> None:
    expected = f"tritonserver ended with {how}: its log gives no reason"
    assert describe_end(write_log(tmp_path, START + END), status) == expected
    assert describe_end(tmp_path / "missing.log", status) == expected
    assert describe_end(tmp_path, status) == expected


def test_end_of_a_long_log(tmp_path: Path) -> None:
    """Only the end is read, even if that cuts a character."""
    path = write_log(tmp_path, "犬\n" * 1_000_000 + "error: the cause\n")
    assert path.stat().st_size > 3 << 20
    assert describe_end(path, 1) == "tritonserver ended with exit status 1: the cause"


def test_log_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "tritonserver.log"
    path.write_bytes(b"\xff\xfe\n\nerror: caf\xe9\n")
    assert describe_end(path, 1) == "tritonserver ended with exit status 1: caf�"


def test_end_of_a_log_that_was_printed() -> None:
    assert describe_end(STANDARD_OUTPUT, 1) == "tritonserver ended with exit status 1; see its log above"
