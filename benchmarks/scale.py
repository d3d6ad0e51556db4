"""Ten thousand evaluations: whether the last are as quick as the first, and what looking at such a run costs.

    python benchmarks/scale.py [--evaluations 10000] [--layers 16]

A whole run (`Run.create`, `run.execute`) on a genome of two weights per layer, with an evaluator that computes a noisy
fitness from the recipe instead of asking a model and writes transcripts as the engines' does. It is interrupted ten
evaluations before the end of the search, shown, and resumed in a new process. Times include the start of Python.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.driving import COMMAND

LEFT = 10  # evaluations of the search that the resumed run has to ask for
WINDOW = 1000
WARM = 100  # evaluations after which memory is measured first
PROMPTS = 4


class Landscape:
    """Fitness falls with the distance of all weights from 0.8; noise keeps the search from converging."""

    def __init__(self, transcripts: Path, *, stop_after: int | None = None) -> None:
        self._transcripts = transcripts
        self._stop_after = stop_after
        self.stamps: list[float] = []
        self.rss_bytes: list[int] = []

    def evaluate(self, jobs: Iterable[Any]) -> Iterator[Any]:
        from evolve.outcome import Outcome, write_transcript
        from fitness.aggregate import aggregate
        from fitness.prompts import Message, Prompt
        from fitness.responses import Response
        from fitness.scores import Score

        prompts = [Prompt(f"q{i}", (Message("user", f"question {i}"),), (), "search") for i in range(PROMPTS)]
        for job in jobs:
            if len(self.stamps) == self._stop_after:
                raise KeyboardInterrupt
            self.stamps.append(time.time())
            if len(self.stamps) % WARM == 0:
                self.rss_bytes.append(resident_bytes())
            noise = random.Random(job.key)
            weights = weights_of(job.recipe.config)
            value = 0.8 - sum((w - 0.8) ** 2 for w in weights) / max(1, len(weights))  # a parent has none
            scores = [Score(prompt.id, max(-1.0, min(1.0, value + noise.gauss(0, 0.05))), {}, {}) for prompt in prompts]
            result = aggregate(scores, min_scored_share=1.0)
            answers = [(p, Response(p.id, "an answer", 3, "stop"), s) for p, s in zip(prompts, scores, strict=True)]
            seconds = {"merge": 0.0, "generate": 0.0, "judge": 0.0}
            yield Outcome(job, result, write_transcript(self._transcripts, job, result, seconds, answers), seconds)

    def cancel(self) -> None:
        pass


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def weights_of(config: Any) -> list[float]:
    found = []
    for source in config.get("models") or [source for piece in config["slices"] for source in piece["sources"]]:
        weight = source.get("parameters", {}).get("weight", [])
        found += [w["value"] if isinstance(w, dict) else w for w in (weight if isinstance(weight, list) else [weight])]
    return found


def begin(root: Path, evaluations: int) -> dict[str, Any]:
    """In a process of its own: the run until shortly before its end."""
    from evolve.config import load_config
    from evolve.run import Run

    run = Run.create(load_config(root / "run.yaml"), runs_dir=root / "runs", name="long")
    landscape = Landscape(run.transcripts, stop_after=evaluations)
    with suppress(KeyboardInterrupt):
        run.execute(landscape)
    return {"stamps": landscape.stamps, "rss": landscape.rss_bytes}


def go_on(root: Path, began: float) -> dict[str, Any]:
    """In a process of its own: resumes, and tells how long after its start it asked for something new."""
    from evolve.run import Run

    run = Run.open("long", runs_dir=root / "runs")
    landscape = Landscape(run.transcripts)
    run.execute(landscape)
    return {"asked_after": landscape.stamps[0] - began, "asked": len(landscape.stamps)}


def child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, timeout=3000)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def wall_seconds(root: Path, *arguments: str) -> float:
    started = time.monotonic()
    done = subprocess.run([*COMMAND, *arguments], cwd=root, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return round(time.monotonic() - started, 2)


def measure(root: Path, evaluations: int, layers: int) -> dict[str, Any]:
    import yaml
    from common.tiny_models import build_family, config_on, write_prompts

    config = config_on(
        build_family(root / "models", layers=layers, hidden=32),
        write_prompts(root / "prompts.jsonl", per_split=PROMPTS),
        budget={"max_fevals": evaluations},
        search={"stagnation_generations": evaluations, "min_sigma": 1e-12},
        workers={"engine": "transformers", "count": 1},
    )
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    baselines = 3  # on search prompts: two parents and equal weights
    first = child("--role", "begin", "--root", str(root), "--evaluations", str(evaluations + baselines - LEFT))
    stamps, rss = first["stamps"], first["rss"]
    window = min(WINDOW, (len(stamps) - 1) // 2)
    early = (stamps[window] - stamps[0]) / window
    late = (stamps[-1] - stamps[-1 - window]) / window
    shown = wall_seconds(root, "show", "long")
    resumed = child("--role", "resume", "--root", str(root), "--began", str(time.time()))
    return {
        "evaluations": evaluations,
        "dimensions": 2 * layers,
        "seconds_in_all": round(stamps[-1] - stamps[0], 1),
        f"first_{window}_ms_per_evaluation": round(1000 * early, 2),
        f"last_{window}_ms_per_evaluation": round(1000 * late, 2),
        "last_to_first": round(late / early, 3),
        "memory_growth_mib": round((max(rss) - rss[0]) / 2**20, 1),
        "show_seconds": shown,
        "resume_asks_after_seconds": round(resumed["asked_after"], 2),
        "evaluations_after_resume": resumed["asked"],
        "show_finished_seconds": wall_seconds(root, "show", "long"),
        "show_json_seconds": wall_seconds(root, "show", "long", "--json"),
        "history_json_seconds": wall_seconds(root, "history", "long", "--json"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=16, help="searched numbers are twice as many")
    parser.add_argument("--role", choices=("begin", "resume"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.role == "begin":
        print(json.dumps(begin(options.root, options.evaluations)))
        return 0
    if options.role == "resume":
        print(json.dumps(go_on(options.root, options.began)))
        return 0
    with tempfile.TemporaryDirectory(prefix="evolve-scale-") as name:
        result = measure(Path(name), options.evaluations, options.layers)
    print(json.dumps(result, indent=2))
    met = {
        "last_to_first at most 1.2": result["last_to_first"] <= 1.2,
        "memory growth below 100 MB": result["memory_growth_mib"] * 2**20 < 100e6,
        "show within 3 s": max(result["show_seconds"], result["show_finished_seconds"]) < 3,
        "resume asks within 10 s": result["resume_asks_after_seconds"] < 10,
    }
    for target, reached in met.items():
        print(f"{target}: {'yes' if reached else 'NO'}")
    return int(not all(met.values()))


if __name__ == "__main__":
    sys.exit(main())
