from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evolve.evaluation import Candidate, Evaluation
from evolve.finals import Standing, compare, finalists, leaders, prompt_scores, standings
from evolve.genome import Genome
from evolve.genome_config import GenomeConfig
from evolve.outcome import Failed, write_transcript
from fitness.aggregate import Fitness
from fitness.prompts import Message, Prompt
from fitness.responses import Response
from fitness.scores import Score, Unscored
from workers.job import Job
from workers.models import Architecture
from workers.recipe import Recipe

Values = Sequence[float | None]


@pytest.fixture(scope="module")
def genome() -> Genome:
    config = GenomeConfig.model_validate(
        {"models": ["a", "b"], "base_model": "base", "merge_method": "task_arithmetic"}
    )
    return Genome(config, Architecture(1, ("e",), (("model.layers.0.x",),), ("h",)), out_dtype="bfloat16")


def candidate(genome: Genome, generation: int, index: int, genotype: tuple[float, float]) -> Candidate:
    return Candidate(
        key=f"search-{generation:04d}-{index:03d}",
        kind="search",
        label=f"candidate {generation}.{index}",
        recipe=genome.decode(genotype),
        split="search",
        generation=generation,
        index=index,
        genotype=genotype,
    )


def evaluated(one: Candidate, value: float | None) -> Evaluation:
    result = Failed("merge", "refused") if value is None else Fitness(value, 0.1, 4, 4, {})
    return Evaluation(one, result, {}, None)


def searched(genome: Genome, values: Values) -> list[Evaluation]:
    """A generation of candidates that differ."""
    return [evaluated(candidate(genome, i // 3, i % 3, (0.1 + i / 50, 0.5)), value) for i, value in enumerate(values)]


# --- finalists --------------------------------------------------------------------------------------------------


def test_leaders_are_the_best_first_and_failures_are_none(genome: Genome) -> None:
    rows = searched(genome, [0.2, None, 0.9, -0.5, 0.4, 0.0])
    assert [row.value for row in leaders(rows)] == [0.9, 0.4, 0.2, 0.0, -0.5]


def test_the_earlier_of_equal_leaders_comes_first_whatever_finished_first(genome: Genome) -> None:
    rows = searched(genome, [0.5, 0.7, 0.7, 0.7, 0.5])
    labels = [row.candidate.label for row in leaders(rows)]
    assert labels == ["candidate 0.1", "candidate 0.2", "candidate 1.0", "candidate 0.0", "candidate 1.1"]
    assert [row.candidate.label for row in leaders(rows[::-1])] == labels


def test_evaluations_on_validation_prompts_do_not_lead(genome: Genome) -> None:
    rows = searched(genome, [0.5])
    one = Candidate("final", "finalist", "x", Recipe({}), "validation")
    assert leaders([*rows, evaluated(one, 1.0)]) == rows


def test_finalists_are_the_mean_and_the_leaders(genome: Genome) -> None:
    rows = searched(genome, [0.2, 0.9, 0.4, None, 0.6])
    found = finalists(genome, rows, np.array([0.5, 0.25]), top_k=2, repeats=1)
    assert [c.key for c in found] == [
        "final-mean-search",
        "final-mean-validation-0",
        "final-0000-001-validation-0",
        "final-0001-001-validation-0",
    ]
    assert [c.split for c in found] == ["search", "validation", "validation", "validation"]
    assert {c.kind for c in found} == {"finalist"}
    assert found[1].genotype == (0.5, 0.25)
    assert found[2].recipe == rows[1].candidate.recipe
    assert found[2].genotype == rows[1].candidate.genotype


def test_repeats_are_asked_for_each_finalist_under_keys_of_their_own(genome: Genome) -> None:
    found = finalists(genome, searched(genome, [0.2, 0.9]), np.array([0.5, 0.25]), top_k=2, repeats=3)
    validation = [c for c in found if c.split == "validation"]
    assert len(validation) == 9
    assert len({c.key for c in found}) == 10
    assert sorted({c.repeat for c in validation}) == [0, 1, 2]


def test_no_recipe_is_a_finalist_twice(genome: Genome) -> None:
    rows = [
        evaluated(candidate(genome, 0, i, genotype), value)
        for i, (genotype, value) in enumerate(
            [((0.3, 0.3), 0.9), ((0.3, 0.3), 0.8), ((0.5, 0.5), 0.7), ((0.2, 0.2), 0.6), ((0.1, 0.1), 0.5)]
        )
    ]
    found = finalists(genome, rows, np.array([0.5, 0.5]), top_k=3, repeats=1)
    hashes = [c.recipe.hash for c in found if c.split == "validation"]
    assert len(hashes) == len(set(hashes)) == 4
    assert [c.label for c in found] == ["distribution mean", "candidate 0.0", "candidate 0.3", "candidate 0.4"]


@pytest.mark.parametrize("value", [0.1, None])
def test_the_mean_is_not_asked_twice_on_the_search_prompts(genome: Genome, value: float | None) -> None:
    rows = [*searched(genome, [0.2, 0.4]), evaluated(candidate(genome, 1, 0, (0.5, 0.25)), value)]
    found = finalists(genome, rows, np.array([0.5, 0.25]), top_k=3, repeats=1)
    assert [c.split for c in found] == ["validation"] * 3
    assert [c.label for c in found].count("distribution mean") == 1


def test_a_search_in_which_all_failed_leaves_the_mean(genome: Genome) -> None:
    found = finalists(genome, searched(genome, [None, None]), np.array([0.5, 0.25]), top_k=3, repeats=1)
    assert [c.label for c in found] == ["distribution mean"] * 2


# --- standings --------------------------------------------------------------------------------------------------


def answered(
    folder: Path,
    kind: Any,
    label: str,
    scores: dict[str, float | None] | None,
    *,
    split: Any = "validation",
    repeat: int = 0,
) -> Evaluation:
    """A row with its transcript; a score of None is unscored, ``scores=None`` is a failure."""
    recipe = Recipe({"merge_method": "linear", "label": label})
    one = Candidate(f"{kind}-{label}-{split}-{repeat}".replace(" ", "_"), kind, label, recipe, split, repeat)
    job = Job(one.key, recipe, split, repeat)
    if scores is None:
        path = write_transcript(folder, job, Failed("generate", "out of memory"), {})
        return Evaluation(one, Failed("generate", "out of memory"), {}, path.name)
    answers = [
        (
            Prompt(prompt_id, (Message("user", prompt_id),), (), split),
            Response(prompt_id, "answer", 1, "stop"),
            Score(prompt_id, Unscored("the judge was silent") if value is None else value, {}, {}),
        )
        for prompt_id, value in scores.items()
    ]
    known = [value for value in scores.values() if value is not None]
    result = Fitness(sum(known) / len(known), 0.1, len(known), len(scores), {})
    path = write_transcript(folder, job, result, {}, 0, answers)
    return Evaluation(one, result, {}, path.name)


def test_standings_have_the_mean_over_prompts_and_an_interval_around_it(tmp_path: Path) -> None:
    rows = [answered(tmp_path, "parent", "persona", {f"q{i}": i / 10 for i in range(10)})]
    (standing,) = standings(rows, tmp_path, "parent")
    assert standing.value == pytest.approx(0.45)
    assert standing.ci95 is not None
    assert standing.ci95[0] < 0.45 < standing.ci95[1]


def test_parents_stand_in_the_order_of_the_config_with_both_splits(tmp_path: Path) -> None:
    # A row's key carries the place in the config; the rows come in the order in which workers finished.
    rows = [
        answered(tmp_path, "parent", label, {"q1": value}, split=split)
        for split in ("search", "validation")
        for label, value in (("b-better", 0.8), ("a-worse", 0.1))
    ]
    found = standings(rows, tmp_path, "parent")
    assert [(s.label, s.kind, s.value) for s in found] == [("a-worse", "parent", 0.1), ("b-better", "parent", 0.8)]
    assert [s.search.value if s.search else None for s in found] == [0.1, 0.8]


def test_finalists_stand_best_first_and_failures_last(tmp_path: Path) -> None:
    rows = [
        answered(tmp_path, "finalist", "low", {"q1": 0.2}),
        answered(tmp_path, "finalist", "failed", None),
        answered(tmp_path, "finalist", "high", {"q1": 0.9}),
    ]
    found = standings(rows, tmp_path, "finalist")
    assert [s.label for s in found] == ["high", "low", "failed"]
    assert (found[-1].value, found[-1].ci95) == (None, None)


def test_equal_finalists_stand_by_their_search_fitness(tmp_path: Path) -> None:
    rows = []
    for label, search in (("one", 0.3), ("two", 0.6)):
        rows.append(answered(tmp_path, "search", label, {"q1": search}, split="search"))
        rows.append(answered(tmp_path, "finalist", label, {"v1": 0.5}))
    found = standings(rows, tmp_path, "finalist")
    assert [s.label for s in found] == ["two", "one"]
    assert [s.search.value if s.search else None for s in found] == [0.6, 0.3]


def test_repeats_are_averaged_prompt_by_prompt(tmp_path: Path) -> None:
    rows = [
        answered(tmp_path, "finalist", "x", {"q1": 0.0, "q2": 1.0}, repeat=0),
        answered(tmp_path, "finalist", "x", {"q1": 1.0, "q2": 1.0}, repeat=1),
        answered(tmp_path, "finalist", "x", None, repeat=2),
    ]
    (standing,) = standings(rows, tmp_path, "finalist")
    assert len(standing.validation) == 3
    assert prompt_scores(standing.validation, tmp_path) == {"q1": 0.5, "q2": 1.0}
    assert standing.value == pytest.approx(0.75)


def test_unscored_answers_are_left_out(tmp_path: Path) -> None:
    rows = [answered(tmp_path, "finalist", "x", {"q1": 0.2, "q2": None, "q3": 0.4})]
    assert prompt_scores(rows, tmp_path) == {"q1": 0.2, "q3": 0.4}
    assert standings(rows, tmp_path, "finalist")[0].value == pytest.approx(0.3)


def standing(folder: Path, label: str, scores: dict[str, float | None] | None) -> Standing:
    (found,) = standings([answered(folder, "finalist", label, scores)], folder, "finalist")
    return found


def test_models_are_compared_over_the_prompts_that_both_have_a_score_for(tmp_path: Path) -> None:
    winner = standing(tmp_path, "winner", {"q1": 0.9, "q2": None, "q3": 0.7, "q4": 0.6, "only": 0.0})
    other = standing(tmp_path, "other", {"q4": 0.5, "q3": None, "q2": 0.1, "q1": 0.1})
    difference = compare(winner, other, tmp_path)
    assert difference is not None
    assert difference.mean == pytest.approx(((0.9 - 0.1) + (0.6 - 0.5)) / 2)
    assert difference.low < difference.mean < difference.high


def test_prompts_are_paired_by_id_not_by_place(tmp_path: Path) -> None:
    scores = {f"q{i}": i / 20 for i in range(20)}
    winner = standing(tmp_path, "winner", {k: v + 0.04 for k, v in scores.items()})
    other = standing(tmp_path, "other", dict(reversed(scores.items())))
    difference = compare(winner, other, tmp_path)
    assert difference is not None
    assert difference.mean == pytest.approx(0.04)
    assert difference.p_better > 0.7


def test_a_clear_winner_is_above_zero_and_a_model_beside_itself_is_not(tmp_path: Path) -> None:
    winner = standing(tmp_path, "winner", {f"q{i}": 1.0 for i in range(30)})
    other = standing(tmp_path, "other", {f"q{i}": float(i % 5 == 0) for i in range(30)})
    clear, same = compare(winner, other, tmp_path), compare(winner, winner, tmp_path)
    assert clear is not None
    assert clear.low > 0
    assert same is not None
    assert same.mean == 0
    assert same.low <= 0 <= same.high


@pytest.mark.parametrize("scores", [None, {"elsewhere": 0.5}])
def test_without_common_prompts_there_is_no_comparison(tmp_path: Path, scores: Any) -> None:
    winner = standing(tmp_path, "winner", {"q1": 1.0})
    assert compare(winner, standing(tmp_path, "other", scores), tmp_path) is None


def test_a_lost_transcript_leaves_a_model_without_a_value(tmp_path: Path) -> None:
    row = answered(tmp_path, "finalist", "x", {"q1": 1.0})
    (tmp_path / str(row.transcript)).unlink()
    assert standings([row], tmp_path, "finalist")[0].value is None
