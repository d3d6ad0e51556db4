from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from safetensors.torch import load_file, save_file

import evolve
from evolve.config import RunConfig
from evolve.errors import ConfigError, RunStopped, StoreError
from evolve.export import export_ranked
from evolve.finals import standings
from evolve.hold import held
from evolve.progress import Silent
from evolve.run import Run, run_names
from evolve.tables import closing_table, plain
from evolve.views import history, ranking, show_dict
from fitness.errors import UserMistake

MakeConfig = Callable[..., RunConfig]


def finished(config: RunConfig, runs_dir: Path, name: str, landscape: Any, **how: Any) -> Run:
    run = Run.create(config, runs_dir=runs_dir, name=name)
    run.execute(landscape(run.transcripts, **how))
    return run


def cut_before_the_row_of(
    key: str, config: RunConfig, runs_dir: Path, landscape: Any, *, stop_after: int
) -> tuple[Run, Run]:
    """A run left alone, and its twin, stopped and opened again, with a transcript whose row is missing."""
    whole = finished(config, runs_dir, "whole", landscape)
    run = Run.create(config, runs_dir=runs_dir, name="cut")
    with pytest.raises(KeyboardInterrupt):
        run.execute(landscape(run.transcripts, stop_after=stop_after))
    shutil.copy(whole.transcripts / f"{key}.jsonl", run.transcripts)
    return whole, Run.open("cut", runs_dir=runs_dir)


def essence(run: Run) -> list[tuple[Any, ...]]:
    """What two equal runs share: everything but times."""
    return [(r["key"], r["genotype"], r["recipe_hash"], r["fitness"], r["state"]) for r in history(run)]


# 30 combinations of the budget's three numbers and of n, drawn once: each makes a whole run.
_DRAW = random.Random(0)
_BUDGETS = [
    {
        "layer_granularity": _DRAW.choice([0, 1]),
        "filters": _DRAW.choice([[], ["self_attn"]]),
        **_DRAW.choice(
            [
                {"max_fevals": _DRAW.randint(2, 40)},
                {"max_fevals": _DRAW.randint(10, 40), "popsize": _DRAW.randint(2, 10)},
                {"max_fevals": _DRAW.randint(12, 40), "generations": _DRAW.randint(1, 6)},
                {"generations": _DRAW.randint(1, 4), "popsize": _DRAW.randint(2, 9)},
                {"generations": _DRAW.randint(1, 3)},
            ]
        ),
    }
    for _ in range(30)
]


@pytest.mark.parametrize("combination", _BUDGETS, ids=lambda c: "-".join(f"{k[:3]}{v}" for k, v in c.items()))
def test_history_holds_exactly_what_the_plan_says(
    combination: dict[str, Any], make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    budget = {k: v for k, v in combination.items() if k in ("max_fevals", "generations", "popsize")}
    config = make_config(
        **{
            "budget": budget,
            "genome.layer_granularity": combination["layer_granularity"],
            "genome.filters": combination["filters"],
        }
    )
    run = finished(config, tmp_path, "r", landscape)
    plan = run.state.plan
    rows = history(run)
    searched = [r for r in rows if r["kind"] == "search"]
    assert len(searched) == plan.search_evaluations <= plan.max_fevals
    if "max_fevals" in budget:
        assert plan.max_fevals == budget["max_fevals"]
    full = [r for r in searched if r["index"] < plan.popsize]
    assert len(full) == plan.generations * plan.popsize
    assert len(searched) - len(full) == plan.remainder
    assert sum(r["kind"] in ("parent", "baseline") for r in rows) == plan.baselines
    assert sum(r["kind"] == "finalist" for r in rows) <= plan.finalists
    assert run.status == "finished"
    assert run.state.stop_reason == "budget"


def test_a_run_stopped_anywhere_resumes_to_the_same_history(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    config = make_config()
    whole = finished(config, tmp_path, "whole", landscape)
    total = len(history(whole))
    for stop_after in range(1, total, 3):
        run = Run.create(config, runs_dir=tmp_path, name=f"cut-{stop_after}")
        first = landscape(run.transcripts, stop_after=stop_after)
        with pytest.raises(KeyboardInterrupt):
            run.execute(first)
        assert first.cancelled
        assert Run.open(run.name, runs_dir=tmp_path).status == "interrupted"
        np.random.standard_normal(10_000)  # must not matter
        again = Run.open(run.name, runs_dir=tmp_path)
        second = landscape(run.transcripts)
        again.execute(second)
        assert essence(again) == essence(whole)
        assert sorted(first.evaluated + second.evaluated) == sorted(r["key"] for r in history(whole))


def test_resuming_a_finished_run_changes_nothing(make_config: MakeConfig, landscape: Any, tmp_path: Path) -> None:
    run = finished(make_config(), tmp_path, "r", landscape)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.suffix != ".lock"}
    again = Run.open("r", runs_dir=tmp_path)
    evaluator = landscape(run.transcripts)
    again.execute(evaluator)
    assert evaluator.evaluated == []
    assert before == {path: path.read_bytes() for path in before}


def test_a_complete_transcript_whose_row_is_missing_is_adopted(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    key = "search-0000-002"
    whole, again = cut_before_the_row_of(key, make_config(), tmp_path, landscape, stop_after=5)
    evaluator = landscape(again.transcripts)
    again.execute(evaluator)
    assert key not in evaluator.evaluated
    assert essence(again) == essence(whole)


def test_stored_genotypes_are_told_and_drift_is_a_warning(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    config = make_config()
    run = Run.create(config, runs_dir=tmp_path, name="r")
    with pytest.raises(KeyboardInterrupt):
        run.execute(landscape(run.transcripts, stop_after=10))
    # Another machine: what is asked again differs from what is stored. A different start does the same.
    moved = make_config(**{"genome.parameters": {"weight": {"min": 0, "max": 1.5, "init": 0.5000001}}})
    again = Run.open("r", runs_dir=tmp_path)
    again.config = moved
    again.execute(landscape(run.transcripts))
    assert again.status == "finished"
    assert "differ from those recorded" in again.state.warnings[0]
    assert len(again.store.summaries("search")) == again.state.plan.search_evaluations


def test_a_first_generation_of_ties_does_not_end_the_run(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = finished(make_config(**{"budget.max_fevals": 30}), tmp_path, "r", landscape, fitness=lambda job: 0.0)
    assert len(run.store.summaries("search")) == 30
    assert run.state.stop_reason == "budget"


def test_a_failed_candidate_is_recorded_and_the_run_goes_on(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    counter = itertools.count()
    run = finished(make_config(), tmp_path, "r", landscape, fitness=lambda job: None if next(counter) % 5 == 4 else 0.1)
    rows = history(run)
    failed = [r for r in rows if r["state"] == "failed"]
    assert failed
    assert all(r["fitness"] is None and r["failure"]["stage"] == "merge" for r in failed)
    assert len([r for r in rows if r["kind"] == "search"]) == run.state.plan.search_evaluations


def test_too_many_failures_stop_the_run_and_resuming_tries_them_again(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    broken = landscape(run.transcripts, fitness=lambda job: None if "search-0001" in job.key else 0.3)
    with pytest.raises(RunStopped, match=r"6 of 6 evaluations failed.*refused by the landscape"):
        run.execute(broken)
    stopped = Run.open("r", runs_dir=tmp_path)
    assert stopped.status == "failed"
    assert len(list(run.transcripts.glob("*.failed.jsonl"))) == 6  # what was answered is kept
    assert not [row for row in stopped.store.rows("search") if row.candidate.generation == 1]
    stopped.execute(landscape(run.transcripts))
    assert stopped.status == "finished"
    assert all(row.value is not None for row in stopped.store.rows())


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("search.target_fitness", -1.0, "target_fitness"),
        ("search.min_sigma", 0.24, "min_sigma"),
        ("budget.max_hours", 1e-9, "wall_clock"),
    ],
)
def test_stop_reasons_are_recorded_by_name(
    setting: str, value: float, reason: str, make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = finished(make_config(**{setting: value, "budget.max_fevals": 60}), tmp_path, "r", landscape)
    assert run.state.stop_reason == reason
    assert show_dict(run)["stop_reason"] == reason
    assert len(run.store.summaries("search")) < 60


def test_the_winner_is_the_best_on_validation_prompts_not_on_search_prompts(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    def flattering(job: Any) -> float:
        noise = int(job.recipe.hash, 16) % 1000 / 1000
        return noise if job.split == "search" else 0.5 - 0.5 * noise

    run = finished(make_config(), tmp_path, "r", landscape, fitness=flattering)
    found = standings(run.store.rows(), run.transcripts, "finalist")
    winner = ranking(run)[0]
    assert winner.standing is not None
    assert winner.standing.value == max(s.value for s in found if s.value is not None)
    best_searched = max((r for r in run.store.rows("search")), key=lambda r: r.value or 0)
    assert winner.recipe.hash != best_searched.candidate.recipe.hash


def test_the_history_is_a_plain_optuna_study(make_config: MakeConfig, landscape: Any, tmp_path: Path) -> None:
    run = finished(make_config(), tmp_path, "r", landscape)
    study = optuna.load_study(storage=f"sqlite:///{run.folder / 'history.db'}", study_name="r")
    assert len(study.trials) == run.state.plan.search_evaluations
    assert set(study.best_params) == {"weight of one", "weight of two"}
    assert study.best_value == max(row.value for row in run.store.rows("search") if row.value is not None)


def test_show_keeps_its_contract(make_config: MakeConfig, landscape: Any, tmp_path: Path) -> None:
    run = finished(make_config(), tmp_path, "r", landscape)
    shown = json.loads(json.dumps(show_dict(run)))
    assert shown["evaluations"] == {"planned": 16, "complete": 16, "failed": 0}
    assert shown["status"] == "finished"
    assert {"rank", "recipe", "genotype", "search", "validation"} <= shown["best"].keys()
    assert {"fitness", "stderr", "ci95"} <= shown["best"]["validation"].keys()
    assert [set(p) >= {"model", "search", "validation"} for p in shown["parents"]] == [True, True]
    assert shown["best"]["validation"]["ci95"][0] <= shown["best"]["validation"]["fitness"]


def test_a_name_is_taken_once_and_a_missing_run_lists_those_there(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    finished(make_config(), tmp_path, "r", landscape)
    with pytest.raises(StoreError, match="exists already"):
        Run.create(make_config(), runs_dir=tmp_path, name="r")
    with pytest.raises(StoreError, match="there: r"):
        Run.open("other", runs_dir=tmp_path)
    assert run_names(tmp_path) == ["r"]


def test_a_second_driver_is_refused(make_config: MakeConfig, landscape: Any, tmp_path: Path) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")

    def while_running(job: Any) -> float:
        other = Run.open("r", runs_dir=tmp_path)
        assert other.status == "running"
        with pytest.raises(StoreError, match=rf"driven by process {os.getpid()} on .+ since 20"):
            other.execute(landscape(run.transcripts))
        return 0.5

    run.execute(landscape(run.transcripts, fitness=while_running))


def test_a_config_that_cannot_work_leaves_no_folder_behind(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"no-such-parent"):
        Run.create(
            make_config(**{"genome.models": [str(tmp_path / "no-such-parent")]}), runs_dir=tmp_path / "runs", name="r"
        )
    assert run_names(tmp_path / "runs") == []
    assert not (tmp_path / "runs" / "r").exists()


def test_prompts_changed_since_the_run_began_are_refused(
    make_config: MakeConfig, landscape: Any, tmp_path: Path, prompts_file: Path
) -> None:
    own = tmp_path / "prompts.jsonl"
    own.write_text(prompts_file.read_text())
    run = Run.create(make_config(**{"prompts.files": [str(own)]}), runs_dir=tmp_path, name="r")
    with pytest.raises(KeyboardInterrupt):
        run.execute(landscape(run.transcripts, stop_after=4))
    own.write_text(prompts_file.read_text().replace("country 3", "country 33"))
    with pytest.raises(StoreError, match="changed since it was created"):
        Run.open("r", runs_dir=tmp_path).execute(landscape(run.transcripts))
    own.write_text(prompts_file.read_text())
    Run.open("r", runs_dir=tmp_path).execute(landscape(run.transcripts))
    assert Run.open("r", runs_dir=tmp_path).status == "finished"


def test_from_python_it_is_the_same(config_data: dict[str, Any], landscape: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_data))
    config = evolve.load_config(tmp_path / "run.yaml", ["budget.max_fevals=7"])
    run = evolve.Run.create(config, runs_dir=tmp_path / "runs", name="r")
    run.execute(landscape(run.transcripts))
    assert evolve.Run.open("r", runs_dir=tmp_path / "runs").status == "finished"
    assert run.config.workers.engine == "transformers"


def test_the_clock_does_not_stop_the_replay_of_what_is_recorded(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    whole = finished(make_config(), tmp_path, "whole", landscape)
    run = Run.create(make_config(**{"budget.max_hours": 1.0}), runs_dir=tmp_path, name="cut")
    with pytest.raises(KeyboardInterrupt):
        run.execute(landscape(run.transcripts, stop_after=len(history(whole)) - 2))  # among the finalists
    again = Run.open("cut", runs_dir=tmp_path)
    again.save(seconds=3601.0)  # the limit was used up since
    again.execute(landscape(run.transcripts))
    assert essence(again) == essence(whole)


def test_a_creation_that_was_killed_does_not_take_the_name(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    torn = tmp_path / "r"
    (torn / "skeleton").mkdir(parents=True)
    (torn / "history.db").write_bytes(b"")
    assert finished(make_config(), tmp_path, "r", landscape).status == "finished"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not evolve's")
    with pytest.raises(StoreError, match="exists already"):
        Run.create(make_config(), runs_dir=tmp_path, name="mine")
    assert (tmp_path / "mine" / "notes.txt").exists()


@pytest.mark.parametrize("damage", ["", "{}", "{]", '{"plan": {}}'])
def test_a_damaged_run_is_one_message(damage: str, make_config: MakeConfig, landscape: Any, tmp_path: Path) -> None:
    Run.create(make_config(), runs_dir=tmp_path, name="r")
    (tmp_path / "r" / "run.json").write_text(damage)
    with pytest.raises(StoreError, match=r"run\.json or config\.yaml cannot be read"):
        Run.open("r", runs_dir=tmp_path)


def test_a_run_opened_before_another_driver_went_on_records_nothing_twice(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    other = Run.open("r", runs_dir=tmp_path)
    run.execute(landscape(run.transcripts))
    late = landscape(run.transcripts)
    other.execute(late)
    assert late.evaluated == []
    assert len(optuna.load_study(storage=f"sqlite:///{run.folder / 'history.db'}", study_name="r").trials) == 16


def test_a_run_can_go_on_in_the_process_that_was_interrupted(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    with pytest.raises(KeyboardInterrupt) as kept:  # as an interactive shell keeps the last exception
        run.execute(landscape(run.transcripts, stop_after=9))
    run.execute(landscape(run.transcripts))
    assert run.status == "finished"
    del kept


def test_a_parent_that_changed_since_the_run_began_is_refused(
    make_config: MakeConfig, landscape: Any, tmp_path: Path, llama: Any
) -> None:
    own = tmp_path / "one"
    shutil.copytree(llama.one, own)
    run = Run.create(make_config(**{"genome.models": [str(own), llama.two]}), runs_dir=tmp_path, name="r")
    with pytest.raises(KeyboardInterrupt):
        run.execute(landscape(run.transcripts, stop_after=9))
    for file in own.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    with pytest.raises(StoreError, match="the weights of a parent changed"):
        Run.open("r", runs_dir=tmp_path).execute(landscape(run.transcripts))


def test_a_failure_that_nobody_foresaw_stops_the_run_resumably(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    def full(job: Any) -> float:
        if job.key == "search-0001-003":
            raise OSError(28, "No space left on device")
        return 0.5

    run = Run.create(make_config(), runs_dir=tmp_path, name="r")
    with pytest.raises(RunStopped, match="No space left on device"):
        run.execute(landscape(run.transcripts, fitness=full))
    assert Run.open("r", runs_dir=tmp_path).status == "failed"
    run.execute(landscape(run.transcripts))
    assert run.status == "finished"


def test_intervals_know_that_a_penalty_makes_negative_scores_possible(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = finished(make_config(), tmp_path, "r", landscape, fitness=lambda job: 0.0)
    assert run.state.score_bounds == (-0.5, 0.5)
    low, high = show_dict(run)["parents"][0]["validation"]["ci95"]
    assert low < 0 < high


def test_an_export_needs_neither_the_prompts_nor_the_judge(
    make_config: MakeConfig, landscape: Any, tmp_path: Path, prompts_file: Path
) -> None:
    own = tmp_path / "prompts.jsonl"
    own.write_text(prompts_file.read_text())
    run = finished(make_config(**{"prompts.files": [str(own)]}), tmp_path, "r", landscape)
    own.unlink()
    again = Run.open("r", runs_dir=tmp_path)
    export_ranked(again, ranking(again)[0], tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()
    assert "Recipe hash" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserMistake, match="--out"):
        export_ranked(again, ranking(again)[0], tmp_path / "file" / "out")
    assert run.status == "finished"


def test_the_table_claims_no_winner_where_no_merge_beats_a_parent(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    config = make_config()
    run = Run.create(config, runs_dir=tmp_path, name="r")
    with pytest.raises(KeyboardInterrupt):
        run.execute(landscape(run.transcripts, stop_after=12, fitness=lambda job: 0.9 if "parent" in job.key else 0.4))
    assert "leader so far: " in plain(closing_table(run))
    assert "winner: " not in plain(closing_table(run))
    run.execute(landscape(run.transcripts, fitness=lambda job: 0.9 if "parent" in job.key else 0.4))
    text = plain(closing_table(run))
    assert "winner: " in text
    assert "No merge scored above parent one on these prompts." in text


def test_a_baseline_of_another_shape_is_refused_before_anything_starts(
    make_config: MakeConfig, llama: Any, tmp_path: Path
) -> None:
    shorter = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": llama.one, "layer_range": [0, 1]}]}],
        "dtype": "float32",
    }
    with pytest.raises(ConfigError, match=r"baselines\.recipes\[0\]: its merge has not the tensors .*another number"):
        Run.create(make_config(**{"baselines.recipes": [shorter]}), runs_dir=tmp_path, name="r")
    assert not (tmp_path / "r").exists()


def test_a_disk_that_may_be_too_small_is_a_warning_before_anything_starts(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    class Warned(Silent):
        def warn(self, text: str) -> None:
            assert re.search(r"MiB are free, and the run may write \d+ MiB of answers", text)
            raise InterruptedError

    run = Run.create(make_config(**{"budget.max_fevals": 10**9}), runs_dir=tmp_path, name="r")
    evaluator = landscape(run.transcripts)
    with pytest.raises(InterruptedError):
        run.execute(evaluator, progress=Warned())
    assert evaluator.evaluated == []
    assert Run.open("r", runs_dir=tmp_path).status == "interrupted"


def test_repeats_of_what_is_deterministic_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    for path in ("search.repeats", "finalists.repeats"):
        with pytest.raises(ConfigError, match=rf"{path}: 3 answers to a prompt at temperature 0 are one and the same"):
            Run.create(make_config(**{path: 3}), runs_dir=tmp_path, name="r")


def test_sampled_answers_are_repeated_for_parents_and_finalists_alike(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    run = finished(make_config(**{"generation.temperature": 0.5, "search.repeats": 2}), tmp_path, "r", landscape)
    repeats = {(r.candidate.kind, r.candidate.split): r.candidate.repeats for r in run.store.rows()}
    assert repeats == {
        ("parent", "search"): 2,
        ("baseline", "search"): 2,
        ("search", "search"): 2,
        ("parent", "validation"): 3,
        ("baseline", "validation"): 3,
        ("finalist", "validation"): 3,
    }


def test_a_name_that_is_being_created_is_refused_and_left_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    (folder / "skeleton").mkdir(parents=True)  # the first has come so far
    with held(folder), pytest.raises(StoreError, match="is being driven by process"):
        Run.create(make_config(), runs_dir=tmp_path, name="r")
    assert (folder / "skeleton").exists()


def test_runs_are_listed_by_their_creation_whatever_was_changed_since(make_config: MakeConfig, tmp_path: Path) -> None:
    for name in ("b", "a"):
        Run.create(make_config(), runs_dir=tmp_path, name=name)
    Run.open("b", runs_dir=tmp_path).change(["stop=now"])
    assert run_names(tmp_path) == ["b", "a"]


def test_a_generation_goes_on_with_what_it_was_asked_and_adopts_its_transcripts_after_a_drift(
    make_config: MakeConfig, landscape: Any, tmp_path: Path
) -> None:
    key = "search-0001-002"
    # After 3 baselines, the first generation, and 2 of the second.
    whole, again = cut_before_the_row_of(key, make_config(), tmp_path, landscape, stop_after=11)
    again.config = make_config(**{"genome.parameters": {"weight": {"min": 0, "max": 1.5, "init": 0.5000001}}})
    evaluator = landscape(again.transcripts)
    again.execute(evaluator)
    assert key not in evaluator.evaluated
    same, other = ({r["key"]: r["genotype"] for r in history(one)} for one in (whole, again))
    assert all(same[f"search-0001-00{index}"] == other[f"search-0001-00{index}"] for index in range(6))
    assert again.state.warnings
