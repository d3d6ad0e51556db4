"""A small run config on tiny real models, and an evaluator that scores a recipe by its weights."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evolve.cli import _main
from evolve.config import RunConfig, parse_config
from evolve.outcome import Failed, Outcome, write_transcript
from fitness.aggregate import Fitness, aggregate
from fitness.prompts import Message, Prompt
from fitness.responses import Response
from fitness.scores import Score
from workers.job import Job

MakeConfig = Callable[..., RunConfig]


def weights_of(job: Job) -> list[float]:
    """The weights in a recipe, in the order they stand there."""
    config = job.recipe.config
    sources = config.get("models") or [source for piece in config["slices"] for source in piece["sources"]]
    found: list[float] = []
    for source in sources:
        weight = source.get("parameters", {}).get("weight", [])
        for value in weight if isinstance(weight, list) else [weight]:
            found.append(value["value"] if isinstance(value, dict) else value)
    return found


class Landscape:
    """An evaluator: fitness falls with the distance of all weights from an optimum.

    Not a stand-in for the engines: the protocol ``evolve.evaluator.Evaluator`` is the documented way to bring an
    evaluator of one's own, and the search is tested through it.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        fitness: Callable[[Job], float | None] | None = None,
        stop_after: int | None = None,
    ) -> None:
        self.folder = folder
        self.fitness = fitness or (lambda job: 1 - sum((w - 0.8) ** 2 for w in weights_of(job)) / 4)
        self.stop_after = stop_after
        self.evaluated: list[str] = []
        self.cancelled = False

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        for job in jobs:
            if self.stop_after is not None and len(self.evaluated) >= self.stop_after:
                raise KeyboardInterrupt
            self.evaluated.append(job.key)
            value = self.fitness(job)
            seconds = {"merge": 0.1, "generate": 0.2, "judge": 0.0}
            result: Fitness | Failed = Failed("merge", "refused by the landscape")
            answers = []
            if value is not None:
                # Four prompts around the value, so that there is a spread to bootstrap.
                for index, offset in enumerate((-0.02, -0.01, 0.01, 0.02)):
                    prompt = Prompt(f"q{index}", (Message("user", f"question {index}"),), (), job.split)
                    score = Score(prompt.id, max(-1.0, min(1.0, value + offset)), {}, {})
                    answers.append((prompt, Response(prompt.id, "answer", 2, "stop"), score))
                result = aggregate([score for *_, score in answers], min_scored_share=1.0)
            path = None
            if self.folder is not None:
                path = write_transcript(self.folder, job, result, seconds, answers)
            yield Outcome(job, result, path, seconds)

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def landscape() -> type[Landscape]:
    return Landscape


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [
        {
            "id": f"q{i}",
            "prompt": f"What is the capital of country {i}?",
            "reference": "river",
            "split": "search" if i % 2 else "validation",
        }
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def config_data(llama: Any, prompts_file: Path) -> dict[str, Any]:
    """A config on tiny models as plain data; tests change a copy."""
    return {
        "genome": {"models": [llama.one, llama.two], "base_model": llama.base, "merge_method": "task_arithmetic"},
        "budget": {"max_fevals": 16, "popsize": 6},
        "prompts": {"files": [str(prompts_file)]},
        "generation": {"preset": "greedy-short", "max_new_tokens": 8},
        "fitness": {"terms": [{"metric": "repetition", "weight": -1}, {"metric": "chrf"}]},
        "workers": {"engine": "transformers", "count": 1},
    }


@pytest.fixture(scope="session")
def make_config(config_data: dict[str, Any]) -> MakeConfig:
    """``make_config(**{"budget.max_fevals": 20})``: the config with settings laid over it."""

    def make(**changes: Any) -> RunConfig:
        overrides = [f"{path}={json.dumps(value)}" for path, value in changes.items()]
        return parse_config(config_data, source="test.yaml", overrides=overrides)

    return make


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the same entry point in this process, for the many cases that start no engine."""

    def run(*arguments: str) -> tuple[int, str, str]:
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = _main(list(arguments))
        finally:
            signal.signal(signal.SIGTERM, before)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
