"""A short fuzz run against the shared server; `make fuzz` is the long one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.endurance.fuzzing.campaign import Campaign, CampaignOptions
from benchmarks.endurance.fuzzing.requests import Journal, summarize
from mlcls.model.spec import ModelSpec
from mlcls.server.process import TritonServer
from support.served_models import SmallModels

MODEL = "small_with_sigmoid"


def test_changed_images_harm_nobody(small_server: TritonServer, small_models: SmallModels, tmp_path: Path) -> None:
    version = small_models.repository / f"{MODEL}_engine" / "1"
    spec = ModelSpec.read(version / "model_spec.json")
    options = CampaignOptions(images=300, seed=11, seconds=12)
    campaign = Campaign(small_server.grpc_url, small_server.pid, spec, version / "model.onnx", options)
    journal = Journal(tmp_path / "journal.jsonl")
    peak_bytes = campaign.run(journal, tmp_path / "problems")
    assert [record for record in journal.records if record.problems] == []
    summary = summarize(journal.records)
    assert summary["good_images"] > 0
    assert {"OK", "truncated"} <= set(summary["outcomes"])
    assert 10e6 < peak_bytes < 500e6
