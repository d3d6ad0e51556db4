from __future__ import annotations

import json
import math
import time
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fitness.agreement import Estimate, agreement, histogram, length_preference, raters_alpha, retest

NONE = Estimate(None, None)
SCORE = st.floats(-1e6, 1e6)
POINT = st.integers(1, 7).map(float)
QUICK = settings(deadline=None, max_examples=40)

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section E: four observers, twelve units.
OBSERVERS = {
    "a": "1 2 3 3 2 1 4 1 2 . . .",
    "b": "1 2 3 3 2 2 4 1 2 5 . 3",
    "c": ". 3 3 3 2 3 4 2 2 5 1 .",
    "d": "1 2 3 3 2 4 4 1 2 5 1 .",
}


def units(observers: dict[str, str]) -> list[dict[str, float]]:
    columns = {name: cells.split() for name, cells in observers.items()}
    rows = range(len(next(iter(columns.values()))))
    return [{name: float(cells[row]) for name, cells in columns.items() if cells[row] != "."} for row in rows]


def few_pairs(scores: st.SearchStrategy[float], least: int = 0) -> st.SearchStrategy[list[tuple[float, float]]]:
    return st.lists(st.tuples(scores, scores), min_size=least, max_size=9)


def test_alpha_of_krippendorffs_table_is_the_published_one() -> None:
    alpha = raters_alpha(units(OBSERVERS))
    assert alpha is not None
    assert round(alpha, 3) == 0.849


def test_alpha_needs_no_whole_numbers_and_is_the_same_on_any_scale() -> None:
    moved = [{name: 0.37 * label - 11.1 for name, label in unit.items()} for unit in units(OBSERVERS)]
    assert raters_alpha(moved) == pytest.approx(raters_alpha(units(OBSERVERS)))


def test_alpha_ignores_answers_that_one_person_labelled() -> None:
    assert raters_alpha([*units(OBSERVERS), {"a": 5.0}, {}]) == pytest.approx(raters_alpha(units(OBSERVERS)))


@pytest.mark.parametrize(
    "ratings", [[], [{}], [{"a": 1.0}, {"b": 2.0}], [{"a": 3.0, "b": 3.0}], [{"a": 0.1, "b": 0.1}] * 9]
)
def test_alpha_of_people_is_undefined_without_two_labels_that_could_differ(ratings: list[dict[str, float]]) -> None:
    assert raters_alpha(ratings) is None


@given(few_pairs(POINT, least=3))
@QUICK
def test_alpha_of_judge_and_people_is_that_of_two_raters(scores: list[tuple[float, float]]) -> None:
    judge, human = zip(*scores, strict=True)
    alpha = agreement(judge, human).alpha.value
    library = raters_alpha([{"judge": a, "human": b} for a, b in scores])
    assert (alpha is None) == (library is None)
    assert alpha is None or alpha == pytest.approx(library, abs=1e-9)


def test_alpha_of_thousands_of_different_scores_is_quick_and_near_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    human = rng.normal(4, 1, 6000)
    judge = human + rng.normal(0, 0.5, 6000)
    start = time.monotonic()
    alpha = raters_alpha([{"a": float(a), "b": float(b)} for a, b in zip(human, judge, strict=True)])
    assert time.monotonic() - start < 20
    assert alpha == pytest.approx(agreement(judge.tolist(), human.tolist()).alpha.value, abs=1e-4)


def test_correlations_are_those_worked_out_by_hand() -> None:
    # Rank differences 1, 1, 0, 1, 1: 1 - 6 * 4 / (5 * 24); two of ten pairs of answers the wrong way round.
    found = agreement([1, 2, 3, 4, 5], [2, 1, 3, 5, 4])
    assert found.pairs == 5
    assert found.spearman.value == pytest.approx(0.8)
    assert found.kendall.value == pytest.approx((8 - 2) / 10)
    assert found.mean_difference.value == pytest.approx(0)
    # Squared differences: 4 / 5; variance of 1, 1, 2, 2, .., 5, 5: 20 / 9.
    assert found.alpha.value == pytest.approx(1 - (4 / 5) / (2 * 20 / 9))


def test_kendalls_tau_takes_ties_into_account() -> None:
    # Concordant 4, discordant 1, one pair tied in the first column: (4 - 1) / sqrt(5 * 6).
    assert agreement([1, 2, 2, 3], [1, 3, 2, 2.5]).kendall.value == pytest.approx(3 / math.sqrt(30))


def test_a_lenient_judge_agrees_in_order_and_not_in_numbers() -> None:
    human = [1.0, 2, 3, 4, 5] * 4
    found = agreement([score + 2 for score in human], human)
    assert found.spearman.value == pytest.approx(1)
    assert found.mean_difference == Estimate(2, (2, 2))
    assert found.alpha.value is not None
    assert found.alpha.value < 0.5


def test_intervals_hold_the_true_value_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    truth = 0.6
    pearson = 2 * math.sin(math.pi / 6 * truth)  # of two normal columns with that rank correlation
    held = 0
    for _ in range(30):
        length, noise = rng.normal(size=(2, 40))
        scores = pearson * length + math.sqrt(1 - pearson**2) * noise
        interval = length_preference(scores.tolist(), (10_000 + 1000 * length).astype(int).tolist()).spearman.ci95
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    # With probability 0.99, if each holds with probability 0.93.
    assert held >= 25


def test_equal_data_give_equal_intervals() -> None:
    rng = np.random.default_rng(1)
    judge, human = rng.integers(1, 8, 30).tolist(), rng.integers(1, 8, 30).tolist()
    assert agreement(judge, human) == agreement(judge, human)


def test_three_hundred_answers_take_less_than_three_seconds() -> None:
    rng = np.random.default_rng(1)
    judge, human = rng.uniform(1, 7, 300).tolist(), rng.integers(1, 8, 300).tolist()
    start = time.monotonic()
    agreement(judge, human)
    assert time.monotonic() - start < 3


def test_fewer_than_three_pairs_say_nothing() -> None:
    assert asdict(agreement([], [])) == asdict(agreement([1, 2], [1, 2])) | {"pairs": 0}
    assert agreement([1, 2], [1, 2]).spearman == NONE


def test_fewer_than_ten_pairs_have_no_interval() -> None:
    few, enough = agreement([1, 2, 3] * 3, [1, 3, 2] * 3), agreement([1, 2, 3, 4] * 3, [1, 3, 2, 4] * 3)
    assert few.spearman.value is not None
    assert few.spearman.ci95 is None
    assert enough.spearman.ci95 is not None


def test_a_judge_that_always_gives_the_same_has_no_correlation() -> None:
    found = agreement([4] * 12, [1, 2, 3] * 4)
    assert found.spearman == found.kendall == NONE
    assert found.alpha.value is not None
    assert found.alpha.value < 0
    assert found.mean_difference.value == pytest.approx(2)


def test_one_score_off_the_rest_has_no_interval_since_resamples_lose_it() -> None:
    found = agreement([4] * 11 + [7], list(range(12)))
    assert found.spearman.value is not None
    assert found.spearman.ci95 is None


@given(st.lists(st.tuples(SCORE, SCORE), max_size=20))
@QUICK
def test_every_number_of_an_agreement_is_finite_and_in_its_range(scores: list[tuple[float, float]]) -> None:
    found = agreement([a for a, _ in scores], [b for _, b in scores])
    json.dumps(asdict(found), allow_nan=False)
    for estimate in (found.spearman, found.kendall, found.alpha):
        for number in (estimate.value, *(estimate.ci95 or ())):
            assert number is None or -1 - 1e-9 <= number <= 1 + 1e-9


@given(few_pairs(POINT, least=3), st.integers(1, 20), st.integers(-50, 50))
@QUICK
def test_correlations_do_not_depend_on_the_scale(scores: list[tuple[float, float]], factor: int, shift: int) -> None:
    judge, human = [a for a, _ in scores], [b for _, b in scores]
    moved = agreement([factor * score + shift for score in judge], human)
    found = agreement(judge, human)
    assert moved.kendall.value == pytest.approx(found.kendall.value)
    assert moved.spearman.value == pytest.approx(found.spearman.value)
    mirrored = agreement([-score for score in judge], human).spearman.value
    assert (mirrored is None) == (found.spearman.value is None)
    assert mirrored is None or mirrored == pytest.approx(-(found.spearman.value or 0.0))


@pytest.mark.parametrize(("judge", "human"), [([1, 2], [1]), ([math.nan], [1]), ([1], [math.inf])])
def test_columns_that_do_not_match_are_refused(judge: list[float], human: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        agreement(judge, human)


def test_retest_of_scores_worked_out_by_hand() -> None:
    found = retest([[4, 6], [3, 3], [5], [], [1, 2, 3]])
    assert found is not None
    assert found.answers == 3
    assert found.mean_abs_difference == pytest.approx((2 + 0 + 4 / 3) / 3)
    assert found.spread == pytest.approx(math.sqrt((2 + 0 + 1) / 3))
    assert found.equal_share == pytest.approx(1 / 3)
    assert found.differences == {0: 1, 1: 2, 2: 2}
    # Krippendorff's alpha as analysis of variance: pairable variances against the variance of everything.
    assert found.alpha == pytest.approx(1 - ((2 * 2 + 2 * 0 + 3 * 1) / 7) / np.var([4, 6, 3, 3, 1, 2, 3], ddof=1))


def test_retest_without_repetitions_is_nothing() -> None:
    assert retest([[3.0], []]) is None


def test_a_judge_that_repeats_itself_has_no_spread() -> None:
    found = retest([[3.0, 3.0], [6.5, 6.5]])
    assert found is not None
    assert (found.spread, found.equal_share, found.alpha) == (0, 1, 1)


@given(st.lists(st.lists(SCORE, max_size=4), max_size=8))
@QUICK
def test_every_number_of_a_retest_is_finite(samples: list[list[float]]) -> None:
    found = retest(samples)
    assert (found is None) == all(len(scores) < 2 for scores in samples)
    if found is not None:
        json.dumps(asdict(found), allow_nan=False)
        assert 0 <= found.equal_share <= 1
        assert sum(found.differences.values()) == sum(math.comb(len(scores), 2) for scores in samples)


def test_histogram_counts_every_point_and_rounds_halves_up() -> None:
    assert histogram([1, 1.4, 2.5, 3.5, 5], 1, 5) == {1: 2, 2: 0, 3: 1, 4: 1, 5: 1}


def test_histogram_counts_scores_off_the_scale_by_themselves() -> None:
    assert histogram([0, 2, 9], 1, 3) == {1: 0, 2: 1, 3: 0, "outside": 2}


@given(st.lists(SCORE))
@QUICK
def test_histogram_counts_every_score_once(scores: list[float]) -> None:
    assert sum(histogram(scores, 1, 7).values()) == len(scores)


def test_length_preference_finds_what_a_doubling_brings() -> None:
    chars = [10, 20, 40, 80, 160, 0, 1]
    found = length_preference([2 + 0.5 * math.log2(max(one, 1)) for one in chars], chars)
    assert found.per_doubling == pytest.approx(0.5)
    assert found.spearman.value == pytest.approx(stats.spearmanr(chars, [*range(2, 7), 0, 0])[0], abs=0.1)


def test_length_that_people_reward_as_well_is_no_bias() -> None:
    rng = np.random.default_rng(2)
    chars = rng.integers(10, 1000, 200)
    human = 1 + 0.6 * np.log2(chars) + rng.normal(0, 1, 200)
    judge = 0.9 * human + 0.2 * np.log2(chars)
    alone = length_preference(judge.tolist(), chars.tolist())
    beside = length_preference(judge.tolist(), chars.tolist(), human.tolist())
    assert alone.per_doubling == pytest.approx(0.9 * 0.6 + 0.2, abs=0.15)
    assert beside.per_doubling == pytest.approx(0.2)
    assert beside.spearman == alone.spearman


def test_labels_that_are_all_equal_change_nothing_of_the_slope() -> None:
    scores, chars = [1.0, 3, 2, 5], [10, 20, 40, 80]
    expected = length_preference(scores, chars).per_doubling
    assert length_preference(scores, chars, [0.1] * 4).per_doubling == pytest.approx(expected)


@pytest.mark.parametrize(
    ("chars", "human"),
    [([50] * 5, None), ([10, 20], None), ([10, 20, 40, 80, 160], [1, 2, 3, 4, 5]), ([0, 1, 1, 0, 1], None)],
)
def test_slope_is_undefined_where_length_cannot_be_told_apart(chars: list[int], human: list[float] | None) -> None:
    assert length_preference([3.0, 1, 4, 1, 5][: len(chars)], chars, human).per_doubling is None


@given(st.lists(st.tuples(POINT, st.integers(0, 10_000), POINT), max_size=20), st.booleans())
@QUICK
def test_every_number_of_a_length_preference_is_finite(rows: list[tuple[float, int, float]], people: bool) -> None:
    human = [row[2] for row in rows] if people else None
    found = length_preference([row[0] for row in rows], [row[1] for row in rows], human)
    json.dumps(asdict(found), allow_nan=False)
