"""A short fuzz run against the shared server; `make fuzz` is the long one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.endurance.fuzzing.campaign import Campaign
from mlcls.model.spec import ModelSpec
from mlcls.server.process import TritonServer
from support.served_models import SmallModels

MODEL = "small_with_sigmoid"


def test_changed_images_harm_nobody(small_server: TritonServer, small_models: SmallModels, tmp_path: Path) -> None:
    version = small_models.repository / f"{MODEL}_engine" / "1"
    spec = ModelSpec.read(version / "model_spec.json")
    campaign = Campaign(small_server.grpc_url, small_server.pid, spec, version / "model.onnx", seed=11)
    findings = campaign.run(300, tmp_path / "problems", seconds=12)
    assert findings.problems == []
    assert findings.good > 0
    assert {"OK", "truncated"} <= set(findings.outcomes)
    assert 10e6 < findings.peak_decoding_bytes < 500e6
    assert campaign.next_request == findings.requests > 0
