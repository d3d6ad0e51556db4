"""``evolve check`` on a small run config: sound ones pass, broken ones are found with their remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evolve.check import check
from evolve.check_table import check_table
from evolve.config import RunConfig
from evolve.report import Report
from evolve.tables import plain
from fitness.findings import Finding, worst

MakeConfig = Callable[..., RunConfig]


def found(report: Report, name: str) -> list[Finding]:
    return [one for one in report.findings if one.check == name]


def test_a_sound_config_has_no_errors_and_names_what_was_looked_at(make_config: MakeConfig) -> None:
    report = check(make_config(), ask=False)
    assert not [one for one in report.findings if one.level == "error"]
    for name in ("models-found", "same-shapes", "same-vocabulary", "eos-agrees", "base-plausible", "prompts-leak"):
        assert found(report, name), name
    json.dumps(report.to_dict(), allow_nan=False)
    assert "same-shapes" in plain(check_table(report))


def test_a_missing_model_is_one_finding_and_the_prompts_are_checked_all_the_same(make_config: MakeConfig) -> None:
    config = make_config()
    genome = config.genome.model_copy(update={"models": (config.genome.models[0], "/no/such/model")})
    report = check(config.model_copy(update={"genome": genome}), ask=False)
    assert [one.level for one in found(report, "models-found")] == ["error"]
    assert "/no/such/model" in found(report, "models-found")[0].message
    assert found(report, "few-prompts")
    assert worst(report.findings) == "error"


def test_a_complaint_without_a_remedy_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="needs a remedy"):
        Finding("x", "warning", "here", "bad")


@pytest.mark.slow
def test_parents_of_random_weights_are_told_to_run_on(make_config: MakeConfig, tmp_path: Path) -> None:
    workers: dict[str, Any] = {"engine": "transformers", "count": 1}
    report = check(make_config(workers=workers), weights=False)
    assert report.probe is not None
    assert report.estimate is not None
    assert report.estimate.total_seconds > report.estimate.start_seconds > 0
    assert report.estimate.worker_bytes > 2**20
    own = [one for one in found(report, "answers-end") if one.evidence["settings"] == "the run's settings"]
    assert {one.where for one in own} == set(make_config().genome.models)
    for one in own:
        assert one.level == ("warning" if one.evidence["ended"] < 0.5 or one.evidence["looping"] > 0.2 else "ok")
