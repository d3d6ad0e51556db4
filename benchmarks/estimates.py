"""What `evolve check` expected of the demo's run, beside what then happened: seconds, and memory of a worker.

    python benchmarks/estimates.py [--engine vllm|transformers|auto] [--workers 1] [--max-fevals 60] [--repeats 1]

Prints the ratio expected / happened. The run counts from its beginning to its last answer, engines' start included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from common.driving import Sitting, evolve
from rich.console import Console

from evolve.demo import demo_models
from evolve.resources import configs_dir
from evolve.run import Run
from evolve.usage import utilisation

PATIENCE_SECONDS = 1800.0


def make_config(options: argparse.Namespace) -> dict[str, Any]:
    models = demo_models(Console(stderr=True))
    config: dict[str, Any] = yaml.safe_load((configs_dir() / "demo" / "run.yaml").read_text("utf-8"))
    config["genome"] |= {"models": [str(models.persona), str(models.facts)], "base_model": str(models.base)}
    config["budget"] = {"max_fevals": options.max_fevals}
    config["prompts"] = {"files": [str(configs_dir() / "demo" / "prompts.jsonl")]}
    config["workers"] |= {"engine": options.engine, "count": options.workers}
    return config


def happened(run: Run) -> dict[str, float]:
    """Seconds from the run's beginning to its last answer, and the largest memory of a worker."""
    ends = [share.started + share.seconds for row in run.store.summaries() for share in row.shares]
    peak = max(one["peak_bytes"] for one in utilisation(run))
    return {"total_seconds": max(ends) - run.state.sittings[0], "worker_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", choices=("auto", "vllm", "transformers"), default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-fevals", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "run.yaml").write_text(yaml.safe_dump(make_config(options), allow_unicode=True))
        for number in range(options.repeats):
            told = evolve("check", str(root / "run.yaml"), "--json", seconds=PATIENCE_SECONDS)
            expected = json.loads(told)["estimate"]
            words = ("run", str(root / "run.yaml"), "--name", f"run-{number}", "--runs-dir", str(root), "--force")
            sitting = Sitting(words, root / f"sitting-{number}")
            if sitting.wait(PATIENCE_SECONDS):
                raise SystemExit(f"the run failed: {sitting.tail()}")
            found = happened(Run.open(f"run-{number}", runs_dir=root))
            for key, unit, size in (("total_seconds", "s", 1.0), ("worker_bytes", "GiB", 2.0**30)):
                was, is_now = expected[key] / size, found[key] / size
                print(f"{key}: expected {was:.2f} {unit}, happened {is_now:.2f} {unit}, ratio {was / is_now:.2f}")


if __name__ == "__main__":
    main()
