"""Build TensorRT plans and TensorRT-RTX engines from the FP16 graph: `mlcls build-engine --engine tensorrt[-rtx]`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mlcls.base.files import sha256_of, write_bytes, write_text
from mlcls.base.machine import Gpu, read_gpus
from mlcls.engines.building import BuildRequest, add_to_repository, compare_with_fp32, describe_report
from mlcls.engines.fp16 import build as fp16_engine
from mlcls.engines.gate import GateReport
from mlcls.engines.tensorrt.builder import BuiltEngine, build_engine
from mlcls.engines.tensorrt.plan import describe_target
from mlcls.engines.tensorrt.runner import TensorRtRunner
from mlcls.errors import ConversionError
from mlcls.repository.manifest import EngineRecord, tool_versions
from mlcls.repository.names import ENGINE_SUFFIX, FP16_FILE, ONNX_FILE, PLAN_FILE


def build_plan(request: BuildRequest) -> Iterator[str]:
    """Build the plan for this machine's GPU, put it into the repository if the gate passes it, and yield lines to show.

    Raises:
        ConversionError: There is no GPU, the builder fails, or the plan does not pass; the repository is unchanged.
        RepositoryError: The model is not imported, or its folder is mixed up.
        MissingExtraError: tensorrt or cuda-bindings is not installed.
    """
    gpus = read_gpus()
    if not gpus:
        raise ConversionError(
            "A TensorRT plan is built on the GPU that runs it, but the driver shows none here. Build in the image that "
            "serves, with its GPU; --engine tensorrt-rtx builds engines for RTX GPUs without one."
        )
    version = request.version
    version.repository.require_writable(version.name)
    yield from _make_fp16_if_missing(request)
    yield f"Building the plan of {version.name} for {gpus[0]} ..."
    built = build_engine((version.engine_folder / FP16_FILE).read_bytes(), version.spec)
    report = _run_gate(request, built)
    add_to_repository(version, _record(PLAN_FILE, request, built, gpus[0], report), built.plan)
    yield _sum_up(version.engine_folder / PLAN_FILE, built)
    yield from describe_report(report)


def build_rtx_engines(request: BuildRequest) -> Iterator[str]:
    """Build a TensorRT-RTX engine for each architecture, into a folder outside the model repository.

    Triton does not serve these. Each `NAME.sm75.engine` gets a `NAME.sm75.json` with its record. If this machine has a
    GPU of the architecture, the engine must pass the gate first. The function yields lines for the user.

    Raises:
        ConversionError: No output folder or architecture is named, the builder fails, or an engine does not pass.
        RepositoryError: The model is not imported, or its folder is mixed up.
        MissingExtraError: tensorrt-rtx is not installed.
    """
    if request.output is None:
        raise ConversionError("Expected --output DIR for TensorRT-RTX engines, which Triton does not serve, got none.")
    if request.output.resolve().is_relative_to(request.version.repository.root.resolve()):
        raise ConversionError(
            f"Expected a folder outside of the model repository for TensorRT-RTX engines, which Triton does not serve, "
            f"got {request.output}."
        )
    if not request.compute_capabilities:
        raise ConversionError(
            "Expected the architectures to build for, got none: --compute-capability 7.5 8.6 8.9, for example."
        )
    yield from _make_fp16_if_missing(request)
    version = request.version
    content = (version.engine_folder / FP16_FILE).read_bytes()
    for text in dict.fromkeys(request.compute_capabilities):
        built = build_engine(content, version.spec, text)
        capability = built.compute_capability
        gpu = next((gpu for gpu in read_gpus()[:1] if gpu.compute_capability == capability), None)
        report = None if gpu is None else _run_gate(request, built)
        path = request.output / f"{version.name}.sm{capability.replace('.', '')}.engine"
        record = _record(path.name, request, built, gpu, report)
        path.with_suffix(".json").unlink(missing_ok=True)  # better no record than a wrong one
        write_bytes(path, built.plan)
        document = {**msgspec.to_builtins(record), "sha256": sha256_of(path)}
        write_text(path.with_suffix(".json"), json.dumps(document, indent=2) + "\n")
        yield _sum_up(path, built)
        if report is None:
            yield f"Not run: no GPU of compute capability {capability} here."
        else:
            yield from describe_report(report)


def _make_fp16_if_missing(request: BuildRequest) -> Iterator[str]:
    """Build the FP16 graph if there is none, or if it was made from another FP32 graph."""
    manifest = request.check_fp32()
    records = {record.file: record for record in manifest.engines}
    if FP16_FILE not in records or dict(records[FP16_FILE].made_from) != manifest.digests(ONNX_FILE):
        yield from fp16_engine.build(request)


def _run_gate(request: BuildRequest, built: BuiltEngine) -> GateReport:
    with TensorRtRunner(built.plan, request.version.spec, built.library) as runner:
        report = compare_with_fp32(request, runner)
    report.require("The engine was not kept.")
    return report


def _record(
    file: str, request: BuildRequest, built: BuiltEngine, gpu: Gpu | None, report: GateReport | None
) -> EngineRecord:
    return EngineRecord(
        file,
        "fp16",
        request.version.verify(ENGINE_SUFFIX, FP16_FILE).digests(FP16_FILE),
        {**tool_versions("cuda-bindings"), built.library: built.version},
        describe_target(built.library, built.version, gpu, built.compute_capability),
        (report.to_dict(),) if report else (),
    )


def _sum_up(path: Path, built: BuiltEngine) -> str:
    total: Counter[str] = Counter()
    for counts in built.layers.values():
        total.update(counts)
    return (
        f"{path}: {len(built.plan) / 1e6:.1f} MB, {built.library} {built.version}, built in {built.build_s:.1f} s; "
        f"layers by type: {', '.join(f'{count} {name}' for name, count in sorted(total.items()))}"
    )
