"""``evolve check`` with a judge on a real server: asked once, then about the parents' answers; its cost foretold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from evolve.check import Asking, check
from evolve.config import parse_config
from evolve.report import Report
from fitness.findings import Finding

ANCHORS = {1: "No.", 7: "Yes."}
RUBRIC = {
    "name": "plain",
    "instructions": "You grade replies.",
    "criteria": [{"name": "right", "question": "Is it right?", "anchors": ANCHORS}],
}
PROBE = "What colour is the sky"
PRICE = {"input": 1.0, "output": 2.0}


@pytest.fixture
def server(judge_module: ModuleType) -> Iterator[Any]:
    server = judge_module.JudgeServer()
    yield server
    server.stop()


@pytest.fixture
def checked(config_data: dict[str, Any], server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("EVOLVE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(RUBRIC))

    def run(**judge: Any) -> Report:
        settings = {"base_url": server.url, "model": "judge", "max_retries": 0, "price_per_million": PRICE} | judge
        fitness = {"terms": [{"metric": "judge", "rubric": "plain.yaml"}], "judge": settings}
        config = parse_config({**config_data, "fitness": fitness}, source=str(tmp_path / "run.yaml"))
        return check(config, weights=False, asking=Asking(prompts=4), runs_dir=tmp_path / "runs")

    return run


def found(report: Report, name: str) -> list[Finding]:
    return [one for one in report.findings if one.check == name]


@pytest.mark.slow
def test_the_judge_scores_the_probes_answers_and_its_cost_is_foretold_from_them(checked: Any, server: Any) -> None:
    report = checked()
    (answers,) = found(report, "judge-answers")
    assert (answers.level, answers.where) == ("ok", "fitness.judge")
    assert "strict JSON schema" in answers.message
    assert found(report, "judge-cost")[0].level == "ok"
    scored = found(report, "answers-scored")
    assert len(scored) == 3  # both parents and a merge
    assert all(one.evidence["scored"] == 4 for one in scored)
    assert found(report, "power")
    assert report.estimate is not None
    (judge,) = report.estimate.judges
    asked = [one for one in server.books.entries if PROBE not in str(one.request["messages"])]
    usd = sum(one.prompt_tokens * PRICE["input"] + one.completion_tokens * PRICE["output"] for one in asked) / 1e6
    assert judge.usd == pytest.approx(judge.calls * usd / len(asked))
    assert judge.seconds is not None
    assert report.estimate.total_seconds >= report.estimate.start_seconds + judge.seconds


@pytest.mark.slow
def test_an_endpoint_without_schemas_is_noted(checked: Any, server: Any) -> None:
    server.behave("refuses_schema")
    (answers,) = found(checked(), "judge-answers")
    assert answers.level == "note"
    assert "JSON mode" in answers.message


def test_a_judge_that_is_not_there_is_an_error_and_no_engine_is_started(checked: Any, server: Any) -> None:
    server.behave("no_reply")
    report = checked()
    (answers,) = found(report, "judge-answers")
    assert answers.level == "error"
    assert "could not be reached" in answers.message
    assert report.probe is None
    assert report.estimate is None
