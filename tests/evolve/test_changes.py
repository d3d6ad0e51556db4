from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evolve.changes import CHANGEABLE, changed_settings
from evolve.config import RunConfig
from evolve.errors import ConfigError
from evolve.outcome import Outcome
from evolve.run import Run
from evolve.views import history, show_dict
from workers.job import Job

MakeConfig = Callable[..., RunConfig]


def test_what_can_be_changed_is_a_setting(make_config: MakeConfig) -> None:
    server = {"model": "m", "base_url": "http://localhost:1/v1", "price_per_million": {"input": 1, "output": 2}}
    terms = [{"metric": "judge", "rubric": "chat-quality"}]
    data = [
        make_config(fitness={"terms": terms, "judge": judge, "final_judge": judge}).model_dump(mode="json")
        for judge in (server, {"folder": "judge"})
    ]
    for path in CHANGEABLE:
        found = data
        for name in path.split("."):
            found = [node[name] for node in found if name in node]
        assert found, path


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("seed", 7, "would have asked other candidates"),
        ("budget.popsize", 9, "would have asked other candidates"),
        ("search.sigma0", 0.1, "would have asked other candidates"),
        ("genome.merge_method", "linear", "would decode to other merges"),
        ("generation.max_new_tokens", 9, "could not be compared"),
        ("fitness.min_scored_share", 0.5, "could not be compared"),
        ("workers.dtype", "bfloat16", "last digits"),
        ("store.url", "sqlite:////elsewhere.db", "the history lies there"),
        ("baselines.equal_weights", False, "before the search"),
    ],
)
def test_a_change_of_the_past_is_refused_with_the_reason(
    path: str, value: Any, reason: str, make_config: MakeConfig
) -> None:
    with pytest.raises(ConfigError, match=rf"^{path}: cannot be changed.*{reason}.*Start a new run"):
        changed_settings(make_config(), make_config(**{path: value}))


def test_what_is_the_same_is_no_change(make_config: MakeConfig) -> None:
    assert changed_settings(make_config(), make_config(**{"workers.count": 1})) == {}
    found = changed_settings(make_config(), make_config(**{"workers.count": 2, "stop": "now"}))
    assert found == {"workers.count": (1, 2), "stop": ("in_flight", "now")}


def searched(run: Run) -> list[tuple[Any, ...]]:
    rows = [r for r in history(run) if r["kind"] == "search"]
    return [(r["key"], tuple(r["genotype"]), r["fitness"]) for r in rows]


def test_an_extended_run_goes_on_as_if_its_budget_had_been_so_from_the_start(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    large = Run.create(make_config(**{"budget.max_fevals": 40}), runs_dir=tmp_path, name="large")
    large.execute(landscape(large.transcripts))
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")  # 16 evaluations: two generations of 6 and 4 apart
    run.execute(landscape(run.transcripts))
    small = searched(run)
    again = Run.open("r", runs_dir=tmp_path)
    assert again.change(["budget.max_fevals=40"]) == {"budget.max_fevals": (16, 40)}
    assert again.status == "interrupted"
    evaluator = landscape(run.transcripts)
    again.execute(evaluator)
    assert again.status == "finished"
    found = searched(again)
    assert len(found) == again.state.plan.search_evaluations == 40
    assert set(small) <= set(found)
    assert len(evaluator.evaluated) == len(set(evaluator.evaluated))
    assert len({genotype for _, genotype, _ in found}) == 40  # what was spent apart is not asked again
    # Told are the same generations as in the run that was large from the start; 4 were spent apart.
    in_generations = [row for row in found if int(row[0][-3:]) < 6]
    assert in_generations == searched(large)[: len(in_generations)]
    assert len(in_generations) == 36
    reopened = Run.open("r", runs_dir=tmp_path)
    assert reopened.config.budget.max_fevals == 40
    assert reopened.state.changes[0]["settings"] == {"budget.max_fevals": [16, 40]}
    assert len({r["label"] for r in history(reopened) if r["kind"] == "finalist" and "mean" in r["label"]}) == 2


def test_an_extension_by_less_than_a_generation_spends_it_on_new_points(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    run.execute(landscape(run.transcripts))
    run.change(["budget.max_fevals=18"])
    run.execute(landscape(run.transcripts))
    rows = searched(run)
    assert len(rows) == 18
    assert len({genotype for _, genotype, _ in rows}) == 18
    shown = show_dict(run)["all_evaluations"]
    assert shown["recorded"] <= shown["planned"]


def test_a_remainder_that_was_cut_short_is_not_written_over(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    class FromTheEnd(landscape):  # type: ignore[misc]
        """As several workers do: what was asked last may be finished first."""

        def evaluate(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
            yield from super().evaluate(reversed(list(jobs)))

    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    with pytest.raises(KeyboardInterrupt):
        run.execute(FromTheEnd(run.transcripts, stop_after=3 + 12 + 2))  # baselines, generations, half the remainder
    before = searched(run)
    run.change(["budget.max_fevals=17"])
    run.execute(landscape(run.transcripts))
    assert len(searched(run)) == 17
    assert set(before) <= set(searched(run))


def test_what_comes_to_the_same_is_no_change(make_config: MakeConfig, landscape: Any, tmp_path: Path) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    run.execute(landscape(run.transcripts))
    assert run.change(["budget.max_fevals=null"]) == {}
    assert run.status == "finished"


def test_a_change_that_may_touch_last_digits_is_a_warning(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    run.change(["workers.split_prompts=4"])
    assert run.state.warnings == (
        "workers.split_prompts was changed from None to 4: last digits can differ from there on.",
    )


def test_a_handle_from_before_sees_a_change(make_config: MakeConfig, landscape: Any, tmp_path: Path) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    assert run.config.finalists.top_k == 3
    Run.open("r", runs_dir=tmp_path).change(["finalists.top_k=1"])
    run.execute(landscape(run.transcripts))
    assert run.config.finalists.top_k == 1
    assert len(history(run)) == run.state.plan.total_evaluations


def test_a_budget_below_what_is_recorded_is_refused(make_config: MakeConfig, landscape: Any, tmp_path: Path) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    run.execute(landscape(run.transcripts))
    with pytest.raises(ConfigError, match="can be 16 at least, not 12"):
        run.change(["budget.max_fevals=12"])
    assert Run.open("r", runs_dir=tmp_path).status == "finished"


def test_a_condition_that_would_have_stopped_earlier_leaves_what_is_recorded(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    with pytest.raises(KeyboardInterrupt):
        run.execute(landscape(run.transcripts, stop_after=14))  # in the second generation
    run.change(["search.target_fitness=-1.0"])
    run.execute(landscape(run.transcripts))
    assert run.state.stop_reason == "target_fitness"
    assert len(searched(run)) == 12


def test_no_change_leaves_a_finished_run_finished(make_config: MakeConfig, landscape: Any, tmp_path: Path) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    run.execute(landscape(run.transcripts))
    assert run.change(["workers.count=1"]) == {}
    assert run.status == "finished"


def test_a_judge_can_be_mended_before_anything_is_scored(make_config: MakeConfig) -> None:
    terms = [{"metric": "judge", "rubric": "chat-quality"}]
    old, new = (
        make_config(fitness={"terms": terms, "judge": {"model": "m", "temperature": temperature}})
        for temperature in (0.0, None)
    )
    assert changed_settings(old, new, judged=False) == {"fitness.judge.temperature": (0.0, None)}
    with pytest.raises(ConfigError, match="could not be compared"):
        changed_settings(old, new)
