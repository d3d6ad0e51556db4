"""What a check says about the price of judging, and how an estimate is corrected by what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evolve.config import parse_config
from evolve.estimate import Estimate
from evolve.judge_costs import JudgeEstimate, estimates
from evolve.judge_findings import judge_findings
from evolve.prepare import Prepared, prepare
from fitness.findings import Finding
from fitness.spending import Spent

RUBRIC = {
    "name": "plain",
    "instructions": "You grade replies.",
    "criteria": [{"name": "right", "question": "Is it right?", "anchors": {1: "No.", 7: "Yes."}}],
}
PRICE = {"input": 2.0, "output": 8.0}
SERVER = {"base_url": "http://127.0.0.1:9/v1", "model": "judge"}  # nobody is asked


@pytest.fixture
def prepared_with(tmp_path: Path, config_data: dict[str, Any]) -> Callable[..., Prepared]:
    """``prepared_with({"max_calls": 3}, final_judge={...})``: a run with judges on a server."""

    def make(judge: dict[str, Any], **fitness: Any) -> Prepared:
        (tmp_path / "plain.yaml").write_text(yaml.safe_dump(RUBRIC))
        terms = [{"metric": "judge", "rubric": "plain.yaml"}]
        first = judge if "folder" in judge else SERVER | judge
        data = {**config_data, "fitness": {"terms": terms, "judge": first, **fitness}}
        return prepare(parse_config(data, source=str(tmp_path / "run.yaml")), tmp_path)

    return make


@pytest.fixture
def found(prepared_with: Callable[..., Prepared]) -> Callable[..., Finding]:
    def one(judge: dict[str, Any]) -> Finding:
        (finding,) = judge_findings(prepared_with(judge))
        assert (finding.check, finding.where) == ("judge-cost", "fitness.judge")
        json.dumps(finding.to_dict(), allow_nan=False)
        return finding

    return one


# --- findings ---------------------------------------------------------------------------------------------------


def test_a_known_price_without_a_cap_is_ok_and_names_the_dollars(found: Callable[..., Finding]) -> None:
    one = found({"price_per_million": PRICE})
    assert one.level == "ok"
    assert f"about ${one.evidence['usd']:.2f}" in one.message
    assert "without a cap" in one.message


def test_no_price_is_a_note_that_names_the_calls_and_the_setting(found: Callable[..., Finding]) -> None:
    one = found({})
    assert one.level == "note"
    assert f"{one.evidence['calls']} calls at most" in one.message
    assert "price_per_million" in one.remedy


def test_a_cap_below_the_calls_is_a_warning_and_one_as_large_is_none(found: Callable[..., Finding]) -> None:
    calls = found({})
    needed = calls.evidence["calls"]
    assert found({"max_calls": needed}).level == "note"
    one = found({"max_calls": needed - 1})
    assert one.level == "warning"
    assert f"about {needed} calls are needed and {needed - 1} allowed" in one.message
    assert "resumable" in one.message
    assert "Raise the cap" in one.remedy


def test_a_cap_below_the_dollars_is_a_warning(found: Callable[..., Finding]) -> None:
    usd = found({"price_per_million": PRICE}).evidence["usd"]
    assert found({"price_per_million": PRICE, "max_usd": usd * 1.01}).level == "ok"
    one = found({"price_per_million": PRICE, "max_usd": usd * 0.99})
    assert one.level == "warning"
    assert "fitness.judge.max_usd" in one.message


def test_each_judge_on_a_server_has_a_finding(prepared_with: Callable[..., Prepared]) -> None:
    prepared = prepared_with({"price_per_million": PRICE}, final_judge={**SERVER, "model": "dearer", "max_calls": 1})
    assert [(one.where, one.level) for one in judge_findings(prepared)] == [
        ("fitness.judge", "ok"),
        ("fitness.final_judge", "warning"),
    ]


def test_a_local_judge_costs_nothing_and_has_no_finding(llama: Any, prepared_with: Callable[..., Prepared]) -> None:
    assert judge_findings(prepared_with({"folder": llama.base, "gpus": 0})) == []


def test_without_a_judge_there_is_no_finding(make_config: Any, tmp_path: Path) -> None:
    assert judge_findings(prepare(make_config(), tmp_path)) == []


# --- what was measured ------------------------------------------------------------------------------------------

TELLING = 8  # calls
NUMBERS = st.integers(0, 10**6)
ESTIMATES = st.builds(
    JudgeEstimate,
    st.just("fitness.judge"),
    st.just("judge"),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.none() | st.floats(0, 1e3),
    st.none(),
    st.none(),
)
SPENT = st.builds(Spent, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.floats(0, 1e3))
SECONDS = st.floats(0, 1e4)


@given(ESTIMATES, SPENT, SECONDS, st.integers(0, 10**4))
def test_all_of_it_takes_as_many_times_more_as_there_are_calls(
    one: JudgeEstimate, spent: Spent, seconds: float, answers: int
) -> None:
    found = one.measured(spent, seconds, answers)
    assert (found.answers, found.calls) == (one.answers, one.calls)
    if not one.calls:  # a local judge
        assert found == replace(one, seconds=found.seconds)
        assert found.seconds == (pytest.approx(seconds * one.answers / answers) if answers else None)
    elif spent.calls < TELLING:
        assert found == one
    else:
        times = one.calls / spent.calls
        assert found.prompt_tokens == pytest.approx(times * spent.prompt_tokens, abs=0.5)
        assert found.completion_tokens == pytest.approx(times * spent.completion_tokens, abs=0.5)
        assert found.seconds == pytest.approx(times * seconds)
        assert found.usd == (None if one.usd is None else pytest.approx(times * spent.usd))


def test_what_was_measured_of_all_is_what_it_is() -> None:
    one = JudgeEstimate("fitness.judge", "judge", 10, 20, 9000, 900, 5.0, 7.0, 30)
    found = one.measured(Spent(20, 0, 800, 80, 0.25), 12.0, 10)
    assert found == replace(one, prompt_tokens=800, completion_tokens=80, usd=0.25, seconds=12.0)
    assert found.caution is None


@pytest.mark.parametrize("calls", [0, TELLING - 1])
def test_too_few_calls_leave_the_reckoning_and_no_seconds(prepared_with: Callable[..., Prepared], calls: int) -> None:
    (one,) = estimates(prepared_with({"price_per_million": PRICE}))
    assert one.measured(Spent(calls=calls, cached=99, prompt_tokens=1), 5.0, 99) == one
    assert one.seconds is None
    assert one.measured(Spent(calls=TELLING), 5.0, 99).seconds is not None


def test_a_cap_is_compared_with_what_was_measured(prepared_with: Callable[..., Prepared]) -> None:
    prepared = prepared_with({"price_per_million": PRICE, "max_usd": 1e-3})
    (reckoned,) = estimates(prepared)
    assert reckoned.caution is not None
    cheap = reckoned.measured(Spent(calls=reckoned.calls, usd=1e-4), 5.0, reckoned.answers)
    none = Estimate(0.0, 0.0, 0.0, 0.0, 0, 0, judges=(cheap,))
    assert [one.level for one in judge_findings(prepared)] == ["warning"]
    assert [one.level for one in judge_findings(prepared, none)] == ["ok"]
