"""How busy the workers are, and how well judging hides behind generating: a real Ray pool, simulated durations.

    python benchmarks/utilisation.py [--workers 4] [--candidates 16] [--generations 2] [--judged 32]

Prints, per worker, the share of the time in which it was busy over some generations of candidates of uneven length
(0.5 to 1.5 s), with ``workers.split_prompts`` off and on. Then some candidates are judged by a server on loopback
that takes as long for an answer as a worker for a candidate, with as many requests at once as make judging everything
take as long as generating everything: the time for both beside each other, over that of the slower one alone.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from evolve.evaluator import Answering, EngineEvaluator
from evolve.judging import Judging
from evolve.resources import configs_dir
from fitness.generation import PRESETS, Generation
from fitness.judge_config import JudgeConfig
from fitness.judges import build_judge
from fitness.prompts import Message, Prompt
from fitness.responses import Response
from fitness.scorer import FitnessConfig, check_scoring
from workers.actor import Worker
from workers.engine import Engine, EngineSpec
from workers.job import Job, JobFailed, Split, Transcript
from workers.pool import Pool
from workers.recipe import Recipe

PROMPTS = 8
JUDGE_SECONDS = 1.0


class SleepingEngine:
    """Answers after as long as the recipe says, in proportion to the number of answers."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def swap(self, recipe: Recipe) -> float:
        self._seconds = float(recipe.config["seconds"])
        return 0.0

    def generate(
        self, prompts: Sequence[tuple[str, list[int]]], settings: Generation, seeds: Sequence[int]
    ) -> tuple[Response, ...]:
        del settings
        time.sleep(self._seconds * len(prompts) / PROMPTS)
        return tuple(Response(p, f"{self._seconds} {s}", 1, "stop") for (p, _), s in zip(prompts, seeds, strict=True))

    def close(self) -> None:
        pass


class Sleeper(Worker):
    def make_engine(self, spec: EngineSpec) -> Engine:
        del spec
        return SleepingEngine()


class Answers:
    """Answers that are all there at once, so that only judging takes time."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Transcript | JobFailed]:
        for job in jobs:
            responses = [Response(f"q{i}", f"{job.key} {i}", 1, "stop") for i in range(PROMPTS)]
            yield Transcript(job, tuple(responses), {})

    def cancel(self) -> None:
        pass


class SleepingJudge(BaseHTTPRequestHandler):
    """A chat completions server that grades everything alike, slowly."""

    protocol_version = "HTTP/1.1"
    verdict = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(JUDGE_SECONDS)
        message = {"role": "assistant", "content": self.verdict, "refusal": None}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "sleeper", "choices": [choice]}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def make_jobs(name: str, count: int, seed: int) -> list[Job]:
    durations = random.Random(seed)
    return [
        Job(f"{name}-{i}", Recipe({"seconds": durations.uniform(0.5, 1.5), "key": f"{name}-{i}"}), "search")
        for i in range(count)
    ]


def make_pool(folder: Path, workers: int, split_prompts: int | None) -> Pool:
    prompts: dict[Split, list[tuple[str, list[int]]]] = {"search": [(f"q{i}", [1]) for i in range(PROMPTS)]}
    return Pool(
        EngineSpec("transformers", folder, {}),
        prompts,
        PRESETS["greedy-short"],
        count=workers,
        cpus_per_worker=0.25,
        split_prompts=split_prompts,
        worker_class=Sleeper,
    )


def busy_shares(pool: Pool, generations: int, candidates: int) -> list[float]:
    """Per worker, its busy seconds over the wall seconds of all generations, each ended before the next begins."""
    list(pool.run(make_jobs("warm-up", pool.count, 0)))  # the first calls are slow
    busy = [0.0] * pool.count
    started = time.monotonic()
    for generation in range(generations):
        for result in pool.run(make_jobs(f"generation-{generation}", candidates, generation)):
            for share in result.shares:
                busy[share.worker] += share.seconds
    wall = time.monotonic() - started
    return [round(seconds / wall, 3) for seconds in busy]


def start_judging(url: str, prompts: Sequence[Prompt], at_once: int, folder: Path) -> Judging:
    config = FitnessConfig.model_validate(
        {
            "terms": [{"metric": "judge", "rubric": "chat-quality"}],
            "judge": {"base_url": url, "model": "sleeper", "max_concurrency": at_once, "cache": False},
        }
    )
    scoring = check_scoring(config, prompts=prompts, root=folder, rubrics_dir=configs_dir() / "rubrics")
    assert isinstance(config.judge, JudgeConfig)
    assert scoring.rubric is not None
    judge = build_judge(config.judge, scoring.rubric)
    return Judging({"search": scoring.scorer(judge)}, {"fitness.judge": judge})


def evaluate_seconds(pool: Answering, url: str, jobs: Sequence[Job], at_once: int, folder: Path) -> float:
    prompts = [Prompt(f"q{i}", (Message("user", f"question {i}"),), (), "search") for i in range(PROMPTS)]
    judging = start_judging(url, prompts, at_once, folder)
    evaluator = EngineEvaluator(pool, judging, {"search": prompts}, transcripts=folder, min_scored_share=1.0)
    try:
        started = time.monotonic()
        outcomes = list(evaluator.evaluate(iter(jobs)))
        assert len(outcomes) == len(jobs)
        return time.monotonic() - started
    finally:
        judging.close()


def start_judge() -> ThreadingHTTPServer:
    rubric: dict[str, Any] = yaml.safe_load((configs_dir() / "rubrics" / "chat-quality.yaml").read_text("utf-8"))
    SleepingJudge.verdict = json.dumps(
        {c["name"]: {"reason": "asleep", "score": 4} for c in rubric["criteria"] if "{answer_language}" not in str(c)}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), SleepingJudge)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=16, help="per generation")
    parser.add_argument("--generations", type=int, default=2)
    parser.add_argument("--judged", type=int, default=32, help="candidates that are judged")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    server = start_judge()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    with tempfile.TemporaryDirectory(prefix="evolve-workers-") as name:
        folder = Path(name)
        for split in (None, 1):
            with make_pool(folder, options.workers, split) as pool:
                shares = busy_shares(pool, options.generations, options.candidates)
                report[f"busy_share_per_worker_split_prompts_{split}"] = shares
                report[f"busy_share_split_prompts_{split}"] = round(sum(shares) / len(shares), 3)
                if split is None:
                    continue
                jobs = make_jobs("judged", options.judged, 99)
                at_once = options.workers * PROMPTS
                started = time.monotonic()
                list(pool.run(iter(jobs)))
                generation = time.monotonic() - started
                judging = evaluate_seconds(Answers(), url, jobs, at_once, folder)
                both = evaluate_seconds(pool, url, jobs, at_once, folder)
    server.shutdown()
    report["generation_alone_seconds"] = round(generation, 2)
    report["judging_alone_seconds"] = round(judging, 2)
    report["both_seconds"] = round(both, 2)
    report["both_over_the_slower_alone"] = round(both / max(generation, judging), 3)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
