"""From what one worker did to the whole run: plain arithmetic on the tiny config, and a probe made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.config import RunConfig, parse_config
from evolve.estimate import Estimate, estimate
from evolve.prepare import Prepared, prepare
from evolve.probe import RUN, Asked, Probe
from evolve.probe_scores import Scored
from fitness.generation import PRESETS
from fitness.spending import Spent

MakeConfig = Callable[..., RunConfig]
UNSCORED = Scored((), 0.0, {})
BOOKKEEPING = 0.05
RUBRIC = {
    "name": "plain",
    "instructions": "You grade replies.",
    "criteria": [{"name": "right", "question": "Is it right?", "anchors": {1: "No.", 7: "Yes."}}],
}


def seen(*, start: float = 10.0, warm_up: float = 2.0, merge: float = 3.0, answers: float = 4.0) -> Probe:
    asked = Asked("a merge", RUN, PRESETS["greedy-short"], (), (), 0.0)
    return Probe((), asked, start, warm_up, merge, answers, peak_bytes=123)


@pytest.fixture(scope="module")
def prepared(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """16 evaluations: two generations of 6 and a remainder of 4; 4 search prompts and 4 of validation."""
    return prepare(make_config(), tmp_path_factory.mktemp("prepared"))


def of(prepared: Prepared, probe: Probe, scored: Scored = UNSCORED, *, workers: int = 1) -> Estimate:
    found = estimate(replace(prepared, workers=workers), probe, scored, disk_bytes=7)
    json.dumps(found.to_dict(), allow_nan=False)
    return found


def test_one_worker_does_one_evaluation_after_another(prepared: Prepared) -> None:
    found = of(prepared, seen())
    each = 3.0 + 4.0 + BOOKKEEPING  # a merge, all 4 search prompts
    assert found.start_seconds == 12.0
    assert found.evaluation_seconds == pytest.approx(each)
    assert found.search_seconds == pytest.approx(16 * each)
    # Parents and equal weights on either split, the mean and three leaders on validation; equally many prompts.
    assert found.total_seconds == pytest.approx(12.0 + prepared.plan.total_evaluations * each)
    assert (found.worker_bytes, found.disk_bytes, found.judges) == (123, 7, ())


def test_a_generation_waits_for_its_last_candidate(prepared: Prepared) -> None:
    each = 7.0 + BOOKKEEPING
    # Generations of 6 in rounds of 4 take 2 rounds each, the remainder of 4 takes one.
    assert of(prepared, seen(), workers=4).search_seconds == pytest.approx((2 * 2 + 1) * each)
    assert of(prepared, seen(), workers=2).search_seconds == pytest.approx((2 * 3 + 2) * each)
    assert of(prepared, seen(), workers=99).search_seconds == pytest.approx((2 * 1 + 1) * each)


def test_what_is_not_the_search_goes_in_rounds_too(prepared: Prepared) -> None:
    each = 7.0 + BOOKKEEPING
    found = of(prepared, seen(), workers=2)
    # 3 on the search prompts; 3 and 4 finalists on validation.
    assert found.total_seconds == pytest.approx(12.0 + found.search_seconds + (2 + 4) * each)


def test_without_a_remainder_the_mean_answers_the_search_prompts_at_the_end(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    prepared = prepare(make_config(**{"budget.max_fevals": 12}), tmp_path)
    assert prepared.plan.remainder == 0
    found = of(prepared, seen())
    each = 7.0 + BOOKKEEPING
    assert found.search_seconds == pytest.approx(12 * each)
    assert found.total_seconds == pytest.approx(12.0 + prepared.plan.total_evaluations * each)


def test_repeats_and_the_number_of_prompts_lengthen_their_split_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    changes = {
        "generation": {"preset": "sampling-long", "max_new_tokens": 8},
        "search.repeats": 2,
        "finalists.repeats": 5,
        "prompts.validation_limit": 2,
    }
    prepared = prepare(make_config(**changes), tmp_path)
    found = of(prepared, seen())
    search, validation = 3 + 4 * 2 + BOOKKEEPING, 3 + 1.0 * 2 * 5 + BOOKKEEPING
    assert found.evaluation_seconds == pytest.approx(search)
    assert found.search_seconds == pytest.approx(16 * search)
    assert found.total_seconds == pytest.approx(12 + (16 + 3) * search + (3 + 4) * validation)


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.floats(0, 100),
    st.floats(0, 100),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_more_workers_never_take_longer_and_never_less_than_their_share(
    prepared: Prepared, workers: int, start: float, warm_up: float, merge: float, answers: float
) -> None:
    probe = seen(start=start, warm_up=warm_up, merge=merge, answers=answers)
    alone, together = of(prepared, probe), of(prepared, probe, workers=workers)
    assert together.evaluation_seconds == alone.evaluation_seconds
    assert together.search_seconds <= alone.search_seconds
    assert together.total_seconds <= alone.total_seconds
    assert together.search_seconds * workers >= alone.search_seconds * (1 - 1e-9)
    assert together.total_seconds >= together.start_seconds + together.search_seconds
    plan = prepared.plan
    rounds = plan.generations * math.ceil(plan.popsize / workers) + math.ceil(plan.remainder / workers)
    assert together.search_seconds == pytest.approx(rounds * together.evaluation_seconds)


# --- a judge beside the engines ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(config_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("judged")
    (folder / "plain.yaml").write_text(yaml.safe_dump(RUBRIC))
    fitness = {
        "terms": [{"metric": "judge", "rubric": "plain.yaml"}],
        "judge": {
            "base_url": "http://127.0.0.1:9/v1",
            "model": "judge",
            "price_per_million": {"input": 2, "output": 8},
        },
    }
    return prepare(parse_config({**config_data, "fitness": fitness}, source=str(folder / "run.yaml")), folder)


def test_a_judge_that_is_slower_than_the_engines_decides_and_a_faster_one_does_not(judged: Prepared) -> None:
    answers = 26 * 4  # each evaluation answers 4 prompts
    engines = of(judged, seen()).total_seconds
    asked = Spent(calls=8, prompt_tokens=800, completion_tokens=80, usd=0.4)
    slow = of(judged, seen(), Scored((), 80.0, {"fitness.judge": asked}))
    assert slow.judges[0].calls == answers
    assert slow.judges[0].seconds == pytest.approx(answers * 10.0)
    assert slow.judges[0].usd == pytest.approx(answers * 0.05)
    assert slow.total_seconds == pytest.approx(12.0 + answers * 10.0)
    quick = of(judged, seen(), Scored((), 0.8, {"fitness.judge": asked}))
    assert quick.total_seconds == engines
    assert slow.search_seconds == quick.search_seconds


def test_a_judge_whose_time_nobody_measured_does_not_count(judged: Prepared) -> None:
    found = of(judged, seen())
    assert found.judges[0].seconds is None
    each = 7.0 + BOOKKEEPING
    assert found.total_seconds == pytest.approx(12.0 + judged.plan.total_evaluations * each)
    # All verdicts were in the cache: no call was made, so nothing can be told of one.
    cached = of(judged, seen(), Scored((), 0.1, {"fitness.judge": Spent(cached=8)}))
    assert cached == found


def test_a_judge_that_scored_nothing_of_the_search_is_not_measured_by_it(
    config_data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(RUBRIC))
    server = {"base_url": "http://127.0.0.1:9/v1", "model": "judge"}
    terms = [{"metric": "judge", "rubric": "plain.yaml"}]
    fitness = {"terms": terms, "judge": server, "final_judge": {**server, "model": "dearer"}}
    config = parse_config({**config_data, "fitness": fitness}, source=str(tmp_path / "run.yaml"))
    spent = {"fitness.judge": Spent(calls=8), "fitness.final_judge": Spent()}
    first, final = of(prepare(config, tmp_path), seen(), Scored((), 8.0, spent)).judges
    assert first.seconds == pytest.approx(first.calls * 1.0)
    assert final.seconds is None
