"""What judging is said to take before a run, and after it, beside the books of a real server; no engines."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from evolve.cli import _main
from evolve.config import RunConfig, load_config
from evolve.evaluator import EngineEvaluator
from evolve.judge_costs import estimates
from evolve.judging import judging
from evolve.run import Run
from evolve.state import SPENDING_FILE
from evolve.usage import judges, length_preference
from fitness.prompts import Prompt
from fitness.responses import Response
from workers.job import Job, Transcript

ANCHORS = {1: "No.", 7: "Yes."}
RUBRIC = {
    "name": "plain",
    "instructions": "You grade replies.",
    "criteria": [
        {"name": "right", "question": "Is it right?", "anchors": ANCHORS},
        {"name": "short", "question": "Is it short?", "anchors": ANCHORS},
        {"name": "kind", "question": "Is it kind?", "anchors": ANCHORS},
    ],
}
SMALL = {
    "budget": {"max_fevals": 5, "popsize": 4},
    "finalists": {"top_k": 1},
    "baselines": {"equal_weights": False},
}
LIMITS = {"search_limit": 2, "validation_limit": 2}
ANSWERS = 22  # 5 evaluations of the search, 2 parents on both splits, 2 finalists, each of 2 prompts
PROBE = "What colour is the sky"


@pytest.fixture(scope="module")
def server(judge_module: ModuleType) -> Iterator[Any]:
    server = judge_module.JudgeServer()
    yield server
    server.stop()


@pytest.fixture
def file_of(
    tmp_path: Path, server: Any, config_data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Writes a config: ``file_of(judge={"samples": 2}, **{"budget.max_fevals": 12})``."""
    monkeypatch.setenv("EVOLVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(RUBRIC))
    (tmp_path / "rivals.jsonl").write_text(
        "".join(json.dumps({"prompt_id": f"q{i}", "text": f"rival {i}"}) + "\n" for i in range(8))
    )
    server.books.entries.clear()

    def make(judge: Mapping[str, Any], **fitness: Any) -> Path:
        terms = [{"metric": "judge", "rubric": "plain.yaml"}]
        # Without a cache, which is a file of its own that is synced with every call.
        first = {"base_url": server.url, "model": "judge", "cache": False, **judge}
        path = tmp_path / "run.yaml"
        prompts = {**config_data["prompts"], **LIMITS}
        fitness |= {"terms": terms, "judge": first}
        path.write_text(yaml.safe_dump({**config_data, **SMALL, "prompts": prompts, "fitness": fitness}))
        return path

    return make


class Source:
    """Answers in place of engines: each answer is a new one, and as long as it may be."""

    def __init__(self, prompts: Mapping[str, Sequence[Prompt]], answer: Callable[[Job, Prompt], str]) -> None:
        self.prompts = prompts
        self.answer = answer

    def run(self, jobs: Iterable[Job]) -> Iterator[Transcript]:
        for job in jobs:
            asked = [(time, one) for time in range(job.repeats) for one in self.prompts[job.split]]
            found = [Response(one.id, f"{self.answer(job, one)}{'!' * time}", 8, "stop") for time, one in asked]
            yield Transcript(job, tuple(found), {"merge": 0.1, "generate": 0.2})

    def cancel(self) -> None:
        pass


def new_one(job: Job, prompt: Prompt) -> str:
    return f"{job.key} {prompt.id}"[:24]


def finished(config: RunConfig, runs: Path, answer: Callable[[Job, Prompt], str] = new_one) -> Run:
    run = Run.create(config, runs_dir=runs, name="r")
    prepared = run.prepared()
    with judging(config, prepared.scoring, prepared.rivals, spending=run.folder / SPENDING_FILE) as stage:
        source = Source(prepared.prompts, answer)
        run.execute(EngineEvaluator(source, stage, prepared.prompts, transcripts=run.transcripts, min_scored_share=1.0))
        run.save(judges=dict(stage.answers_as))
    return run


def planned(capsys: pytest.CaptureFixture[str], config: Path) -> list[dict[str, Any]]:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert _main(["plan", str(config), "--json"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["judges"]
    return found


def asked(server: Any) -> list[Any]:
    """The books without the first question, whose answer is made up."""
    return [one for one in server.books.entries if PROBE not in one.request["messages"][1]["content"]]


CALLS: dict[str, tuple[dict[str, Any], int]] = {
    "together": ({}, 1),
    "samples": ({"samples": 2, "temperature": 0.5}, 2),
    "per criterion": ({"calls": "per_criterion"}, 3),
    "compared": ({"against": ["rivals.jsonl"]}, 2),
    "compared per criterion": ({"calls": "per_criterion", "against": ["rivals.jsonl"]}, 3 * 2),
}


@pytest.mark.parametrize("case", CALLS)
def test_the_plan_names_the_calls_that_a_run_makes_where_every_answer_is_new(
    case: str, file_of: Callable[..., Path], capsys: pytest.CaptureFixture[str], server: Any, tmp_path: Path
) -> None:
    judge, per_answer = CALLS[case]
    config = file_of(judge)
    (plan,) = planned(capsys, config)
    assert (plan["answers"], plan["calls"]) == (ANSWERS, ANSWERS * per_answer)
    finished(load_config(config), tmp_path / "runs")
    assert len(asked(server)) == plan["calls"]
    assert sum(one.prompt_tokens for one in asked(server)) <= plan["prompt_tokens"]


@pytest.mark.parametrize(
    "changes",
    [
        ["budget.max_fevals=4"],  # no remainder, so the mean answers the search prompts at the end
        ["search.repeats=2", "finalists.repeats=3", "generation.temperature=1.0"],
        ["finalists.top_k=3", "baselines.equal_weights=true"],
    ],
)
def test_the_plan_is_never_below_what_a_run_asks(
    changes: list[str], file_of: Callable[..., Path], server: Any, tmp_path: Path, judge_module: ModuleType
) -> None:
    final = judge_module.JudgeServer()
    try:
        path = file_of({}, final_judge={"base_url": final.url, "model": "dearer", "cache": False})
        run = finished(load_config(path, changes), tmp_path / "runs")
        first, last = estimates(run.prepared())
        assert (first.setting, last.setting) == ("fitness.judge", "fitness.final_judge")
        assert (first.calls, last.calls) == (len(asked(server)), len(asked(final)))
    finally:
        final.stop()


def test_the_plan_reckons_by_the_prices(file_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    price = {"input": 2.0, "output": 8.0}
    (plan,) = planned(capsys, file_of({"price_per_million": price, "max_usd": 3.5, "max_calls": 700}))
    assert plan["usd"] == pytest.approx((plan["prompt_tokens"] * 2 + plan["completion_tokens"] * 8) / 1e6)
    assert (plan["max_usd"], plan["max_calls"], plan["judge"]) == (3.5, 700, "judge")


def words_of_the_plan(capsys: pytest.CaptureFixture[str], config: Path) -> str:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert _main(["plan", str(config)]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    return " ".join(capsys.readouterr().out.split())


def test_the_plan_says_that_a_cost_is_unknown_and_that_there_is_no_cap(
    file_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of_the_plan(capsys, file_of({}))
    assert "22 calls to judge" in words
    assert "cost unknown (set price_per_million); without a cap" in words


def test_the_plan_says_cost_and_caps(file_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    judge = {"price_per_million": {"input": 2.0, "output": 8.0}, "max_usd": 3.5, "max_calls": 700}
    words = words_of_the_plan(capsys, file_of(judge))
    assert "; never above $3.5 or 700 calls" in words
    assert "about $" in words


def test_a_local_judge_takes_no_calls(file_of: Callable[..., Path], capsys: pytest.CaptureFixture[str], llama: Any):
    config = file_of({})
    data = yaml.safe_load(config.read_text())
    data["fitness"]["judge"] = {"folder": llama.base, "gpus": 0}
    config.write_text(yaml.safe_dump(data))
    (plan,) = planned(capsys, config)
    assert (plan["answers"], plan["calls"], plan["usd"]) == (ANSWERS, 0, None)
    words = words_of_the_plan(capsys, config)
    assert "22 answers to the local judge base, without calls" in words
    assert "Note: fitness.judge: the local judge base scores by the expected value" in words


def test_the_plan_asks_nothing(file_of: Callable[..., Path], capsys: pytest.CaptureFixture[str], server: Any) -> None:
    planned(capsys, file_of({}))
    assert not server.requests


def test_what_was_spent_equals_the_servers_books(file_of: Callable[..., Path], server: Any, tmp_path: Path) -> None:
    config = load_config(file_of({"price_per_million": {"input": 2.0, "output": 8.0}}))
    (found,) = judges(finished(config, tmp_path / "runs"))
    books = server.books
    assert (found["setting"], found["answers_as"]) == ("fitness.judge", "judge-2026")
    assert found["calls"] == len(books.entries)
    assert found["prompt_tokens"] == sum(one.prompt_tokens for one in books.entries)
    assert found["completion_tokens"] == sum(one.completion_tokens for one in books.entries)
    assert found["usd"] == pytest.approx(books.billed_usd(2.0, 8.0))


def test_identical_answers_are_judged_once_and_counted_as_known(
    file_of: Callable[..., Path], server: Any, tmp_path: Path
) -> None:
    # All candidates tie, so the search goes on with a wider step.
    run = finished(load_config(file_of({"cache": True})), tmp_path / "runs", lambda job, prompt: "the same")
    (found,) = judges(run)
    assert len(asked(server)) == 4  # one for each prompt
    assert found["cached"] + 4 == ANSWERS


def test_a_search_that_is_paid_for_length_shows(
    file_of: Callable[..., Path], server: Any, judge_module: ModuleType, tmp_path: Path
) -> None:
    def answer(job: Job, prompt: Prompt) -> str:
        return "long " * (1 + int(job.key[-1]) % 4 + int(prompt.id[1:]) % 3) if job.key.startswith("search") else "x"

    def by_length(request: Mapping[str, Any]) -> Any:
        points = min(7, 1 + judge_module.read_question(request)["answer"].count("long"))
        return judge_module.verdict(right=points, short=points, kind=points)

    server.script_each(by_length)
    try:
        config = load_config(file_of({}), ["prompts.search_limit=4"])
        run = finished(config, tmp_path / "runs", answer)
    finally:
        server.script_each(judge_module.honest)
    assert length_preference(run) == {"within": pytest.approx(1.0), "between": pytest.approx(1.0)}


def test_score_and_length_are_not_compared_where_lengths_are_equal(
    file_of: Callable[..., Path], tmp_path: Path
) -> None:
    run = finished(load_config(file_of({})), tmp_path / "runs", lambda job, prompt: job.recipe.hash[:9])
    assert length_preference(run) == {"within": None, "between": None}
