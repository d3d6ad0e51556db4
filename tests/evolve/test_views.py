from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.config import RunConfig
from evolve.evaluation import Evaluation
from evolve.evaluator import Evaluator
from evolve.outcome import Outcome
from evolve.plan_table import plan_table
from evolve.prepare import prepare
from evolve.run import Run
from evolve.store import Store, default_url
from evolve.tables import closing_table, history_table, plain, status_lines
from evolve.usage import busy, utilisation
from evolve.views import history, ranking, show_dict
from workers.job import Job, Lost, Share

MakeConfig = Callable[..., RunConfig]


class Staffed:
    """An evaluator whose work is done by two workers in turn; the third job is split, the fourth tried twice."""

    def __init__(self, inner: Evaluator) -> None:
        self._inner = inner
        self._begun = time.time()
        self._count = itertools.count()

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        for outcome in self._inner.evaluate(jobs):
            number = next(self._count)
            shares = [Share(number % 2, 4, self._begun + number, 0.5)]
            if number == 2:
                shares = [Share(worker, 2, self._begun + number, 0.25) for worker in (1, 0)]
            lost = (Lost(0, "worker", "the process died"),) if number == 3 else ()
            yield replace(outcome, shares=tuple(shares), lost=lost)

    def cancel(self) -> None:
        self._inner.cancel()


@pytest.fixture
def run(make_config: MakeConfig, landscape: Any, tmp_path: Path) -> Run:
    """A finished run."""
    found = Run.create(make_config(), runs_dir=tmp_path, name="r")
    found.execute(Staffed(landscape(found.transcripts)))
    return found


# --- utilisation ------------------------------------------------------------------------------------------------

SECONDS = st.floats(0, 1e4)
SHARES = st.lists(st.builds(Share, st.integers(0, 3), st.integers(1, 9), st.floats(1e9, 1.0001e9), SECONDS))


@given(SHARES, st.lists(st.floats(1e9, 1.0001e9), max_size=3).map(sorted))
def test_a_busy_share_is_between_0_and_1(shares: list[Share], sittings: list[float]) -> None:
    found = busy(shares, sittings)
    assert [one["worker"] for one in found] == sorted({share.worker for share in shares})
    for one in found:
        assert 0 <= one["busy_share"] <= 1
        most = sum(share.seconds for share in shares if share.worker == one["worker"])
        assert 0 <= one["busy_seconds"] <= most + 1e-3


def test_busy_seconds_add_up_over_the_time_that_was_worked() -> None:
    shares = [Share(0, 4, 100.0, 8.0, 700), Share(1, 4, 101.0, 4.0), Share(1, 4, 106.0, 4.0)]
    assert busy(shares, [90.0]) == [
        {"worker": 0, "busy_seconds": 8.0, "busy_share": 0.8, "peak_bytes": 700},
        {"worker": 1, "busy_seconds": 8.0, "busy_share": 0.8, "peak_bytes": 0},
    ]


def test_the_peak_of_a_worker_is_the_largest_over_all_sittings() -> None:
    shares = [Share(0, 4, 100.0, 1.0, 900), Share(0, 4, 5000.0, 1.0, 300), Share(1, 4, 5000.0, 1.0, 400)]
    assert [one["peak_bytes"] for one in busy(shares, [90.0, 4990.0])] == [900, 400]


def test_the_pause_between_two_sittings_is_nobodys_idleness() -> None:
    shares = [Share(0, 4, 100.0, 10.0), Share(0, 4, 5000.0, 10.0), Share(1, 4, 5000.0, 5.0)]
    assert [one["busy_share"] for one in busy(shares, [90.0, 4990.0])] == [1.0, 0.25]
    assert busy(shares, [90.0])[0]["busy_share"] < 0.01


def test_work_that_overlaps_on_a_worker_counts_once() -> None:
    shares = [Share(0, 4, 100.0, 10.0), Share(0, 4, 105.0, 2.0), Share(0, 4, 108.0, 4.0)]
    assert busy(shares, [])[0] == {"worker": 0, "busy_seconds": 12.0, "busy_share": 1.0, "peak_bytes": 0}


def test_a_run_says_how_busy_its_workers_were(run: Run) -> None:
    total = len(run.store)
    assert [one["worker"] for one in utilisation(run)] == [0, 1]
    assert sum(one["busy_seconds"] for one in utilisation(run)) == pytest.approx(total * 0.5, abs=0.01)
    assert show_dict(run)["utilisation"] == utilisation(run)
    assert any(line.startswith("busy: worker 0 2") for line in status_lines(run))


# --- history ----------------------------------------------------------------------------------------------------


def test_history_says_who_did_what_and_what_was_lost(run: Run) -> None:
    rows = json.loads(json.dumps(history(run)))
    split = next(row for row in rows if row["shares"] > 1)
    assert (split["workers"], split["shares"]) == ([0, 1], 2)
    retried = next(row for row in rows if row["lost"])
    assert retried["attempts"] == 2
    assert retried["lost"] == [{"worker": 0, "stage": "worker", "reason": "the process died"}]
    assert retried["state"] == "complete"
    assert {row["split"] for row in rows} == {"search", "validation"}
    assert sum(row["attempts"] for row in rows) == len(rows) + 1


def test_the_history_table_marks_what_was_split_and_what_was_tried_again(run: Run) -> None:
    text = " ".join(plain(history_table(history(run)), width=200).split())
    assert "0, 1 in 2 parts *" in text
    assert "can change last digits" in text
    assert "tried 2 times: worker 0: the process died" in text
    whole = [{**row, "shares": 1} for row in history(run)]
    assert "last digits" not in plain(history_table(whole), width=200)


# --- ranking and show -------------------------------------------------------------------------------------------


class Counting(Store):
    """A store that remembers which rows were read."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.read: list[str] = []

    def get(self, key: str) -> Evaluation | None:
        self.read.append(key)
        return super().get(key)

    def rows(self, *kinds: str) -> Iterator[Evaluation]:
        for row in super().rows(*kinds):
            self.read.append(row.candidate.key)
            yield row


def test_only_what_is_shown_is_read_from_the_history(make_config: MakeConfig, landscape: Any, tmp_path: Path) -> None:
    config = make_config(**{"budget.max_fevals": 60, "finalists.top_k": 2})
    run = Run.create(config, runs_dir=tmp_path, name="r")
    run.execute(landscape(run.transcripts))
    store = Counting(default_url(run.folder), "r")
    counted = Run(run.folder, run.state, store)
    show_dict(counted)
    plain(closing_table(counted))
    status_lines(counted)
    finalists = {one.search.candidate.key for one in ranking(run)[:3] if one.search}
    assert set(store.read) == finalists | {
        row.candidate.key for row in run.store.rows("parent", "baseline", "finalist")
    }
    ranked = ranking(counted)
    store.read.clear()
    assert len(ranked) > 50
    assert ranked[10].rank == 11
    assert len(store.read) == 1


def test_every_scored_recipe_has_one_rank(run: Run) -> None:
    ranked = ranking(run)
    assert [one.rank for one in ranked] == list(range(1, len(ranked) + 1))
    assert len({one.recipe.hash for one in ranked}) == len(ranked)
    assert [one.standing is not None for one in ranked] == [True] * 4 + [False] * (len(ranked) - 4)
    behind = [one.search.value for one in ranked[4:] if one.search and one.search.value is not None]
    assert behind == sorted(behind, reverse=True)
    assert ranked[-1] == list(ranked)[-1]
    with pytest.raises(IndexError):
        ranked[len(ranked)]


def test_show_has_the_optimism_and_compares_the_winner_with_everybody(run: Run) -> None:
    shown = json.loads(json.dumps(show_dict(run)))
    best, first, *others = shown["best"], *shown["finalists"]
    assert best["optimism"] == pytest.approx(best["search"]["fitness"] - best["validation"]["fitness"])
    assert first["rank"] == 1
    assert first["winner_minus_it"] is None
    assert len(others) == 3
    for other in others:
        lead = best["validation"]["fitness"] - other["validation"]["fitness"]
        assert other["winner_minus_it"]["mean"] == pytest.approx(lead)
    assert all(one["winner_minus_it"] for one in shown["parents"] + shown["baselines"])
    assert shown["changes"] == []


def test_the_closing_table_compares_with_the_best_parent_first(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")

    def fitness(job: Job) -> float:
        return {"parent-00": 0.1, "parent-01": 0.3}.get(job.key[:9], 0.31 if "final" in job.key else 0.2)

    run.execute(landscape(run.transcripts, fitness=fitness))
    text = " ".join(plain(closing_table(run), width=400).split())
    two, one = text.index("told from parent two"), text.index("parent one: difference")
    assert two < one < text.index("told from baseline equal weights") < text.index("told from finalist")
    assert "probability" not in text  # beside what cannot be told it would only confuse
    assert "hold for all of them at once" in text
    assert "Optimism (search minus validation fitness of the winner; above 0: flattered): -0.110" in text


def test_changed_settings_are_shown(run: Run) -> None:
    run.change(["budget.max_fevals=40", "budget.max_hours=2"])
    lines = [line for line in status_lines(run) if line.startswith("changed ")]
    assert len(lines) == 1
    assert "budget.max_fevals: 16 -> 40; budget.max_hours: unset -> 2.0" in lines[0]
    assert show_dict(run)["changes"][0]["settings"]["budget.max_fevals"] == [16, 40]


# --- plan -------------------------------------------------------------------------------------------------------


def test_the_plan_counts_repeated_answers_and_says_what_is_done_against_noise(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    def text(**changes: Any) -> str:
        prepared = prepare(make_config(**changes), tmp_path)
        return " ".join(plain(plan_table(prepared), width=250).split())

    # 4 prompts of each split; 16 of the search, 3 baselines on both splits, the mean and 3 leaders on validation.
    assert "about 104, each" in text()
    assert "same prompts and decoding seeds" in text()
    assert "answers to each" not in text()
    sampling = {"generation": {"preset": "sampling-long", "max_new_tokens": 8}}
    sampled = text(**sampling, **{"search.repeats": 2, "finalists.repeats": 5, "search.noise": "high"})
    assert "about 292, each" in sampled
    assert "2 answers to each search prompt (search.repeats)" in sampled
    assert "5 answers to each validation prompt (finalists.repeats)" in sampled
    assert "doubled" not in sampled
    assert "popsize doubled (search.noise)" in text(**{"search.noise": "high", "budget": {"generations": 3}})
