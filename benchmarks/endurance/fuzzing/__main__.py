"""Fuzz a server and the library's parsers: `make fuzz`, or `python -m benchmarks.endurance.fuzzing --seed 1`.

It sends changed images, with good ones in between, to a real server with the demo model, and feeds changed files to the
library's own parsers. Findings are printed and written to `output/fuzz`; if there are any, the exit status is 1. An
interrupted run continues where it stopped if it is started again with the same seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from tqdm import tqdm

from benchmarks.endurance.fuzzing.campaign import Campaign, CampaignOptions
from benchmarks.endurance.fuzzing.library_fuzz import PARSERS, fuzz_parser
from benchmarks.endurance.fuzzing.requests import Journal, save_request, summarize
from demo.recipe import DEMO_NAME
from mlcls.images.settings import ImageSettings
from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE
from mlcls.repository.publishing import change_settings
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer

_DEMO_MODEL: Final = Path("demo_model/inference")
_MODELS: Final = Path("build/fuzz/model_repository")
# Cases for each parser of the library, per image sent.
_CASES_PER_IMAGE: Final = 0.1


def main() -> int:
    """Parse the arguments and run; return 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance.fuzzing", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=20_000, help="changed images (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="the same seed sends the same images (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, help="stop after this time, whatever the number of images")
    parser.add_argument(
        "--output", type=Path, default=Path("output/fuzz"), help="folder of the report (default: %(default)s)"
    )
    parser.add_argument("--accept-truncated", action="store_true", help="serve with accept_truncated")
    parser.add_argument("--save-request", type=int, metavar="N", help="write the images of request N and exit")
    arguments = parser.parse_args()
    settings = ImageSettings(accept_truncated=arguments.accept_truncated)
    options = CampaignOptions(arguments.images, arguments.seed, arguments.seconds, settings=settings)
    if not Repository(_MODELS).is_imported(DEMO_NAME):
        import_model(str(_DEMO_MODEL), Repository(_MODELS), name=DEMO_NAME)
    change_settings(Repository(_MODELS), DEMO_NAME, lambda served: msgspec.structs.replace(served, images=settings))
    spec = Repository(_MODELS).active(DEMO_NAME).spec
    weights = Repository(_MODELS).active(DEMO_NAME).engine_folder / ONNX_FILE
    run = f"seed-{arguments.seed}" + ("-accept-truncated" if arguments.accept_truncated else "")
    problems = arguments.output / f"problems-{run}"
    journal = Journal(arguments.output / f"journal-{run}.jsonl")
    with TritonServer(ServerOptions.on_free_ports(_MODELS, DEMO_NAME)) as server:
        campaign = Campaign(server.grpc_url, server.pid, spec, weights, options)
        if arguments.save_request is not None:
            print(save_request(problems, arguments.save_request, campaign.plan(arguments.save_request)))
            return 0
        done = sum(record.images for record in journal.records)
        with tqdm(total=options.images, initial=done, desc="images", unit="image", disable=None) as bar:
            peak_bytes = campaign.run(journal, problems, bar.update)
    cases = max(1, int(options.images * _CASES_PER_IMAGE))
    faults = {
        name: fuzz_parser(name, cases, options.seed) for name in tqdm(PARSERS, desc="parsers", unit="", disable=None)
    }
    report: dict[str, Any] = {
        "seed": options.seed,
        **summarize(journal.records),
        "peak_decoding_mb": round(peak_bytes / 1e6),
        "parsers": {name: {"cases": cases, "faults": found} for name, found in faults.items()},
    }
    found = [
        f"request {record.number}: {problem.kind}: {problem.text}"
        for record in journal.records
        for problem in record.problems
    ] + [f"{name}: {text}" for name, texts in faults.items() for text in texts]
    (arguments.output / f"report-{run}.json").write_text(
        json.dumps({**report, "found": found}, indent=2) + "\n", encoding="utf-8"
    )
    journal.finish()
    print(describe(report))
    for text in found[:20]:
        print(text)
    if found:
        print(f"{len(found)} problems; the images are in {problems}.")
    return 1 if found else 0


def describe(report: dict[str, Any]) -> str:
    """Return the report as readable text."""
    outcomes = "\n".join(f"  {name:22}{count:>8}" for name, count in report["outcomes"].items())
    problems = ", ".join(f"{kind} {count}" for kind, count in report["problems"].items())
    parsers = ", ".join(f"{name} {len(each['faults'])} of {each['cases']}" for name, each in report["parsers"].items())
    return (
        f"{report['images']} changed images and {report['good_images']} good ones in {report['requests']} requests, "
        f"seed {report['seed']}\n{outcomes}\nproblems: {problems}\nslowest answer: {report['slowest_s']} s\n"
        f"peak memory of a decoding process: {report['peak_decoding_mb']} MB\nparser faults: {parsers}"
    )


if __name__ == "__main__":
    sys.exit(main())
