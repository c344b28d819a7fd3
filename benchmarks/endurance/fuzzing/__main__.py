"""Fuzz a server and the library's parsers: `make fuzz`, or `python -m benchmarks.endurance.fuzzing --seed 1`.

It sends changed images, with good ones in between, to a real server with the demo model, and feeds changed files to the
library's own parsers. Findings are printed, and their images written to `output/fuzz`; if there are any, the exit
status is 1. An interrupted run says how to continue.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

import msgspec
from tqdm import tqdm

from benchmarks.endurance.fuzzing.campaign import Campaign, save_request
from benchmarks.endurance.fuzzing.library_fuzz import PARSERS, fuzz_parser
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
    add = parser.add_argument
    add("--images", type=int, default=20_000, help="changed images (default: %(default)s)")
    add("--seed", type=int, default=1, help="the same seed sends the same images (default: %(default)s)")
    add("--seconds", type=float, default=float("inf"), help="stop after this time, whatever the number of images")
    add("--first", type=int, default=0, metavar="N", help="begin with request N, to continue an interrupted run")
    add("--output", type=Path, default=Path("output/fuzz"), help="folder for problems (default: %(default)s)")
    add("--accept-truncated", action="store_true", help="serve with accept_truncated")
    add("--save-request", type=int, metavar="N", help="write the images of request N and exit")
    options = parser.parse_args()
    settings = ImageSettings(accept_truncated=options.accept_truncated)
    repository = Repository(_MODELS)
    if not repository.is_imported(DEMO_NAME):
        import_model(str(_DEMO_MODEL), repository, name=DEMO_NAME)
    change_settings(repository, DEMO_NAME, lambda served: msgspec.structs.replace(served, images=settings))
    version = repository.active(DEMO_NAME)
    problems = options.output / f"problems-seed-{options.seed}"
    with TritonServer(ServerOptions.on_free_ports(_MODELS, DEMO_NAME)) as server:
        weights = version.engine_folder / ONNX_FILE
        campaign = Campaign(server.grpc_url, server.pid, version.spec, weights, options.seed, settings)
        if options.save_request is not None:
            print(save_request(problems, options.save_request, campaign.plan(options.save_request)))
            return 0
        try:
            with tqdm(total=options.images, desc="images", unit="image", disable=None) as bar:
                findings = campaign.run(options.images, problems, options.first, options.seconds, bar.update)
        except KeyboardInterrupt:
            print(f"Interrupted; continue with --seed {options.seed} --first {campaign.next_request}.", file=sys.stderr)
            return 130
    cases = max(1, int(options.images * _CASES_PER_IMAGE))
    bar = tqdm(PARSERS, desc="parsers", unit="", disable=None)
    faults = [f"{name}: {text}" for name in bar for text in fuzz_parser(name, cases, options.seed)]
    outcomes = ", ".join(f"{name} {count}" for name, count in findings.outcomes.most_common())
    print(
        f"Seed {options.seed}: {findings.outcomes.total()} changed images and {findings.good} good ones in "
        f"{findings.requests} requests\n{outcomes}\nproblems: {len(findings.problems)}; slowest answer: "
        f"{findings.slowest_s:.2f} s; peak memory of a decoding process: {findings.peak_decoding_bytes / 1e6:.0f} MB\n"
        f"faults of {len(PARSERS)} parsers, {cases} cases each: {len(faults)}"
    )
    for text in [*findings.problems, *faults][:20]:
        print(text)
    if findings.problems:
        print(f"{len(findings.problems)} problems; the images are in {problems}.")
    return 1 if findings.problems or faults else 0


if __name__ == "__main__":
    sys.exit(main())
