from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evolve.evaluation import Candidate, Evaluation, Summary
from evolve.finals import Standing, compare, finalists, leaders, prompt_scores, standings
from evolve.genome import Genome
from evolve.genome_config import GenomeConfig
from evolve.outcome import Failed, write_transcript
from fitness.aggregate import Fitness, aggregate
from fitness.intervals import mean_interval, simultaneous
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


def summaries(rows: Sequence[Evaluation]) -> list[Summary]:
    return [
        Summary(c.key, c.kind, c.split, c.generation, c.index, c.recipe.hash, row.value, {}, ())
        for row in rows
        for c in [row.candidate]
    ]


class Chosen:
    """The finalists of some rows, and which rows had to be read for it."""

    def __init__(self, genome: Genome, rows: Sequence[Evaluation], mean: tuple[float, float], **how: Any) -> None:
        self.read: list[str] = []
        by_key = {row.candidate.key: row for row in rows}

        def get(key: str) -> Evaluation | None:
            self.read.append(key)
            return by_key.get(key)

        settings = {"top_k": 3, "repeats": 1, "search_repeats": 1} | how
        self.candidates = finalists(genome, summaries(rows), np.array(mean), get=get, **settings)
        self.keys = [c.key for c in self.candidates]
        self.labels = [c.label for c in self.candidates]


# --- finalists --------------------------------------------------------------------------------------------------


def test_leaders_are_the_best_first_and_failures_are_none(genome: Genome) -> None:
    rows = searched(genome, [0.2, None, 0.9, -0.5, 0.4, 0.0])
    assert [row.value for row in leaders(summaries(rows))] == [0.9, 0.4, 0.2, 0.0, -0.5]


def test_the_earlier_of_equal_leaders_comes_first_whatever_finished_first(genome: Genome) -> None:
    rows = summaries(searched(genome, [0.5, 0.7, 0.7, 0.7, 0.5]))
    keys = [row.key[-8:] for row in leaders(rows)]
    assert keys == ["0000-001", "0000-002", "0001-000", "0000-000", "0001-001"]
    assert [row.key[-8:] for row in leaders(rows[::-1])] == keys


def test_only_candidates_of_the_search_lead(genome: Genome) -> None:
    rows = searched(genome, [0.5])
    others = [
        evaluated(Candidate("final", "finalist", "x", Recipe({}), "validation"), 1.0),
        evaluated(Candidate("mean", "finalist", "x", Recipe({}), "search"), 1.0),
        evaluated(Candidate("parent", "parent", "x", Recipe({}), "search"), 1.0),
    ]
    assert leaders(summaries([*rows, *others])) == summaries(rows)


def test_finalists_are_the_mean_and_the_leaders(genome: Genome) -> None:
    rows = searched(genome, [0.2, 0.9, 0.4, None, 0.6])
    found = Chosen(genome, rows, (0.5, 0.25), top_k=2).candidates
    assert [c.split for c in found] == ["search", "validation", "validation", "validation"]
    assert {c.kind for c in found} == {"finalist"}
    assert [c.label for c in found] == ["distribution mean"] * 2 + ["candidate 0.1", "candidate 1.1"]
    assert found[0].recipe == found[1].recipe == genome.decode((0.5, 0.25))
    assert found[1].genotype == (0.5, 0.25)
    assert found[2].recipe == rows[1].candidate.recipe
    assert found[2].genotype == rows[1].candidate.genotype


def test_only_the_finalists_are_read_of_a_long_history(genome: Genome) -> None:
    chosen = Chosen(genome, searched(genome, [0.2, 0.9, 0.4, None, 0.6]), (0.5, 0.25), top_k=2)
    assert chosen.read == ["search-0000-001", "search-0001-001"]


def test_repeats_are_answers_within_one_evaluation(genome: Genome) -> None:
    found = Chosen(genome, searched(genome, [0.2, 0.9]), (0.5, 0.25), repeats=3, search_repeats=2).candidates
    assert [(c.split, c.repeats) for c in found] == [("search", 2)] + [("validation", 3)] * 3


def test_an_extended_search_asks_nothing_again_of_those_that_are_finalists_again(genome: Genome) -> None:
    first = searched(genome, [0.2, 0.9, 0.4])
    before = Chosen(genome, first, (0.5, 0.25), top_k=2)
    more = [*first, evaluated(candidate(genome, 7, 0, (0.9, 0.9)), 1.0)]
    after = Chosen(genome, more, (0.6, 0.3), top_k=2, label="distribution mean after generation 7")
    kept = set(before.keys) & set(after.keys)
    assert kept == {f"final-{first[1].candidate.recipe.hash[:12]}-validation"}
    assert after.labels[:2] == ["distribution mean after generation 7"] * 2
    assert len(set(before.keys) | set(after.keys)) == len(before.keys) + len(after.keys) - 1


def test_no_recipe_is_a_finalist_twice(genome: Genome) -> None:
    rows = [
        evaluated(candidate(genome, 0, i, genotype), value)
        for i, (genotype, value) in enumerate(
            [((0.3, 0.3), 0.9), ((0.3, 0.3), 0.8), ((0.5, 0.5), 0.7), ((0.2, 0.2), 0.6), ((0.1, 0.1), 0.5)]
        )
    ]
    found = Chosen(genome, rows, (0.5, 0.5))
    hashes = [c.recipe.hash for c in found.candidates if c.split == "validation"]
    assert len(hashes) == len(set(hashes)) == 4
    assert found.labels == ["distribution mean", "candidate 0.0", "candidate 0.3", "candidate 0.4"]


@pytest.mark.parametrize("value", [0.1, None])
def test_the_mean_is_not_asked_twice_on_the_search_prompts(genome: Genome, value: float | None) -> None:
    rows = [*searched(genome, [0.2, 0.4]), evaluated(candidate(genome, 1, 0, (0.5, 0.25)), value)]
    found = Chosen(genome, rows, (0.5, 0.25))
    assert [c.split for c in found.candidates] == ["validation"] * 3
    assert found.labels.count("distribution mean") == 1


def test_a_search_in_which_all_failed_leaves_the_mean(genome: Genome) -> None:
    assert Chosen(genome, searched(genome, [None, None]), (0.5, 0.25)).labels == ["distribution mean"] * 2


# --- standings --------------------------------------------------------------------------------------------------


def answered(
    folder: Path,
    kind: Any,
    label: str,
    *rounds: Mapping[str, float | None] | None,
    split: Any = "validation",
) -> Evaluation:
    """A row with its transcript, one round of scores per repeat; a score of None is unscored, a round a failure."""
    recipe = Recipe({"merge_method": "linear", "label": label})
    one = Candidate(f"{kind}-{label}-{split}".replace(" ", "_"), kind, label, recipe, split, len(rounds))
    job = Job(one.key, recipe, split, len(rounds))
    scores = None if None in rounds else [pair for asked in rounds if asked for pair in asked.items()]
    if scores is None:
        path = write_transcript(folder, job, Failed("generate", "out of memory"), {})
        return Evaluation(one, Failed("generate", "out of memory"), {}, path.name)
    answers = [
        (
            Prompt(prompt_id, (Message("user", prompt_id),), (), split),
            Response(prompt_id, "answer", 1, "stop"),
            Score(prompt_id, Unscored("the judge was silent") if value is None else value, {}, {}),
        )
        for prompt_id, value in scores
    ]
    result = aggregate([score for *_, score in answers], min_scored_share=0)
    path = write_transcript(folder, job, result, {}, answers)
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


def test_a_recipe_that_the_search_met_twice_stands_with_the_fitness_it_led_by(tmp_path: Path) -> None:
    final = answered(tmp_path, "finalist", "one", {"v1": 0.5})
    low, high, lost = (
        evaluated(replace(answered(tmp_path, "search", "one", {"q": 0.0}, split="search").candidate, key=key), value)
        for key, value in (("search-0", -0.5), ("search-1", 0.0), ("search-2", None))
    )
    (found,) = standings([low, final, high, lost], tmp_path, "finalist")
    assert found.search is high


def test_repeats_are_averaged_prompt_by_prompt(tmp_path: Path) -> None:
    row = answered(tmp_path, "finalist", "x", {"q1": 0.0, "q2": 1.0}, {"q1": 1.0, "q2": 1.0}, {"q1": None, "q2": None})
    (found,) = standings([row], tmp_path, "finalist")
    assert found.validation is row
    assert found.scores == prompt_scores(row, tmp_path) == {"q1": 0.5, "q2": 1.0}
    assert found.value == row.value == pytest.approx(0.75)


def test_unscored_answers_are_left_out(tmp_path: Path) -> None:
    row = answered(tmp_path, "finalist", "x", {"q1": 0.2, "q2": None, "q3": 0.4})
    assert prompt_scores(row, tmp_path) == {"q1": 0.2, "q3": 0.4}
    assert standings([row], tmp_path, "finalist")[0].value == pytest.approx(0.3)


def test_intervals_of_finalists_grow_with_those_they_were_picked_from(tmp_path: Path) -> None:
    scores = {f"q{i}": float(i % 3 == 0) for i in range(30)}
    widths = []
    for count in (1, 2, 5):
        rows = [answered(tmp_path, "finalist", f"finalist {i}", scores) for i in range(count)]
        lost = answered(tmp_path, "finalist", "failed", None)  # nothing could be picked of it
        best = standings([*rows, lost], tmp_path, "finalist")[0]
        assert best.ci95 is not None
        assert best.ci95 == mean_interval(list(scores.values()), simultaneous(count))
        widths.append(best.ci95[1] - best.ci95[0])
    assert widths == sorted(set(widths))
    parents = standings([answered(tmp_path, "parent", f"p{i}", scores) for i in range(5)], tmp_path, "parent")
    assert parents[0].ci95 == mean_interval(list(scores.values()))


def test_the_lead_of_a_winner_is_less_sure_the_more_it_was_picked_from(tmp_path: Path) -> None:
    winner = standing(tmp_path, "winner", {f"q{i}": float(i % 4 > 0) for i in range(30)})
    rival = standing(tmp_path, "rival", {f"q{i}": float(i % 4 > 1) for i in range(30)})
    parent = replace(rival, kind="parent")
    lows = [
        found.low
        for other, count in ((parent, 1), (parent, 4), (rival, 4), (rival, 9))
        if (found := compare(winner, other, picked_from=count))
    ]
    assert lows == sorted(set(lows), reverse=True)  # 1, 4, 6 and 36 intervals that hold at once
    assert len(lows) == 4


def standing(folder: Path, label: str, scores: Mapping[str, float | None] | None) -> Standing:
    (found,) = standings([answered(folder, "finalist", label, scores)], folder, "finalist")
    return found


def test_models_are_compared_over_the_prompts_that_both_have_a_score_for(tmp_path: Path) -> None:
    winner = standing(tmp_path, "winner", {"q1": 0.9, "q2": None, "q3": 0.7, "q4": 0.6, "only": 0.0})
    other = standing(tmp_path, "other", {"q4": 0.5, "q3": None, "q2": 0.1, "q1": 0.1})
    difference = compare(winner, other, picked_from=1)
    assert difference is not None
    assert difference.mean == pytest.approx(((0.9 - 0.1) + (0.6 - 0.5)) / 2)
    assert difference.low < difference.mean < difference.high


def test_prompts_are_paired_by_id_not_by_place(tmp_path: Path) -> None:
    scores = {f"q{i}": i / 20 for i in range(20)}
    winner = standing(tmp_path, "winner", {k: v + 0.04 for k, v in scores.items()})
    other = standing(tmp_path, "other", dict(reversed(scores.items())))
    difference = compare(winner, other, picked_from=1)
    assert difference is not None
    assert difference.mean == pytest.approx(0.04)
    assert difference.p_better > 0.7


def test_a_clear_winner_is_above_zero_and_a_model_beside_itself_is_not(tmp_path: Path) -> None:
    winner = standing(tmp_path, "winner", {f"q{i}": 1.0 for i in range(30)})
    other = standing(tmp_path, "other", {f"q{i}": float(i % 5 == 0) for i in range(30)})
    clear, same = compare(winner, other, picked_from=1), compare(winner, winner, picked_from=1)
    assert clear is not None
    assert clear.low > 0
    assert same is not None
    assert same.mean == 0
    assert same.low <= 0 <= same.high


@pytest.mark.parametrize("scores", [None, {"elsewhere": 0.5}])
def test_without_common_prompts_there_is_no_comparison(tmp_path: Path, scores: Any) -> None:
    winner = standing(tmp_path, "winner", {"q1": 1.0})
    assert compare(winner, standing(tmp_path, "other", scores), picked_from=1) is None


def test_a_lost_transcript_leaves_a_model_without_a_value(tmp_path: Path) -> None:
    row = answered(tmp_path, "finalist", "x", {"q1": 1.0})
    (tmp_path / str(row.transcript)).unlink()
    assert standings([row], tmp_path, "finalist")[0].value is None


# --- the whole way, with a known truth ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise() -> ModuleType:
    """``benchmarks/noise.py``."""
    path = Path(__file__).parents[2] / "benchmarks" / "noise.py"
    spec = importlib.util.spec_from_file_location("noise_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reports(noise: ModuleType) -> dict[str, list[Any]]:
    """20 noisy searches of four cases, the reported beside the true."""
    cases = ("continuous", "shares", "shares near 0", "shares near 1")
    return {
        case.name: [noise.look(noise.play(case, seed, noise.Options())) for seed in range(20)]
        for case in noise.CASES
        if case.name in cases
    }


def test_the_winner_is_truly_better_on_average_than_the_best_observed(reports: dict[str, list[Any]]) -> None:
    """Over all cases: which points a search asks depends on the processor's arithmetic, and 20 searches are few."""
    assert len(reports) == 4
    gains = {name: [r.winner - r.observed for r in found] for name, found in reports.items()}
    assert np.mean(list(gains.values())) > 0, gains
    for name, found in gains.items():
        assert stats.ttest_1samp(found, 0, alternative="less").pvalue > 0.001, name


def test_reported_intervals_hold_the_truth_about_the_winner(reports: dict[str, list[Any]]) -> None:
    """As often as intervals of 95% do, as far as 20 searches tell: 15 of them would be too few."""
    for name, found in reports.items():
        for what in ("its value", "its lead on the best parent", "its leads on all finalists"):
            held = int(sum(r.holds[what, "reported"] for r in found))
            assert stats.binomtest(held, len(found), 0.95, alternative="less").pvalue > 0.003, (name, what, held)
