from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fitness.intervals import mean_interval, paired_difference, simultaneous

UNIT = st.floats(0, 1)
BINARY = st.sampled_from([0.0, 1.0])
FEW = settings(deadline=None, max_examples=60)


def test_shares_get_the_exact_interval() -> None:
    # The ends as quantiles of beta distributions (Clopper and Pearson).
    expected = stats.beta.ppf(0.025, 7, 4), stats.beta.ppf(0.975, 8, 3)
    assert mean_interval([1] * 7 + [0] * 3) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.001, 0.005, 0.02, 0.5, 0.98, 0.995])
@pytest.mark.parametrize("prompts", [20, 60])
def test_the_best_share_of_several_is_within_simultaneous_intervals(share: float, prompts: int) -> None:
    models = 4
    confidence = simultaneous(models)
    ends = [mean_interval([1] * ones + [0] * (prompts - ones), confidence) for ones in range(prompts + 1)]
    held = [low <= share <= high for low, high in ends]
    # How often the most successes of four equal models is each number, exactly.
    most = stats.binom.cdf(range(prompts + 1), prompts, share) ** models
    assert np.diff(most, prepend=0.0) @ held >= 0.95


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5, 0.123])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_equal_scores_are_not_certain(value: float, count: int) -> None:
    low, high = mean_interval([value] * count)
    # The exact limit for "none of n": the share with which none of n happens in 2.5% of cases.
    assert high - low == pytest.approx(1 - 0.025 ** (1 / count), rel=1e-6)
    assert 0 <= low <= value <= high <= 1


def test_nearly_equal_scores_are_about_as_uncertain_as_equal_ones() -> None:
    equal, nearly = mean_interval([1.0] * 40), mean_interval([1.0] * 39 + [0.99])
    assert nearly[0] <= equal[0]
    assert nearly[0] == pytest.approx(equal[0], abs=0.05)


def test_other_scores_get_the_bootstrap() -> None:
    values = np.random.default_rng(1).beta(2, 5, size=60)
    low, high = mean_interval(values)
    half = stats.t.ppf(0.975, 59) * values.std(ddof=1) / math.sqrt(60)
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


@pytest.mark.parametrize("prompts", [8, 15, 40])
def test_the_bootstrap_is_not_too_short_for_few_prompts(prompts: int) -> None:
    rng = np.random.default_rng(3)
    drawn = rng.beta(4, 4, size=(150, prompts))
    covered = sum(low <= 0.5 <= high for low, high in map(mean_interval, drawn))
    assert covered / len(drawn) > 0.92


def test_intervals_that_hold_at_once_are_wider_the_more_there_are() -> None:
    assert [simultaneous(count) for count in (0, 1, 4)] == pytest.approx([0.95, 0.95, 0.9875])
    values = np.random.default_rng(1).random(30)
    widths = [high - low for low, high in (mean_interval(values, simultaneous(count)) for count in (1, 4, 100))]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] < 1


def test_an_interval_is_the_same_for_the_same_seed() -> None:
    values = np.random.default_rng(1).random(30)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_more_confidence_is_wider() -> None:
    values = np.random.default_rng(1).random(30)
    narrow, wide = mean_interval(values, 0.8), mean_interval(values, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@FEW
@given(st.lists(UNIT, min_size=1, max_size=30) | st.lists(BINARY, min_size=1, max_size=30))
def test_an_interval_holds_the_mean_and_has_a_width(values: list[float]) -> None:
    low, high = mean_interval(values)
    assert 0 <= low <= np.clip(np.mean(values), min(values), max(values)) <= high <= 1
    if len(set(values)) < 2 or len(values) < 6:
        assert high - low > 0.05


@pytest.mark.parametrize("values", [[], [float("nan")], [0.5, 64.0], [-2.0], [float("inf")]])
def test_what_is_no_score_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"at least one value|outside the bounds"):
        mean_interval(values)


def test_other_quantities_have_bounds_of_their_own() -> None:
    low, high = mean_interval([64.0] * 20, bounds=(0, 64))
    assert high == 64
    assert 50 < low < 60


def test_penalties_reach_below_zero() -> None:
    assert mean_interval([0.0] * 20, bounds=(-1, 1))[0] < 0 < mean_interval([0.0] * 20, bounds=(-1, 1))[1]
    assert mean_interval([-0.5] * 20)[0] < -0.5


def test_paired_shares_get_newcombes_interval() -> None:
    # Airway reactivity before and after transplantation, 21 pairs: 1 both, 1 and 7 discordant, 12 neither.
    before, after = [1, 1] + [0] * 7 + [0] * 12, [1, 0] + [1] * 7 + [0] * 12
    difference = paired_difference(before, after)
    assert difference.mean == pytest.approx(-6 / 21)
    assert (difference.low, difference.high) == pytest.approx((-0.507, -0.026), abs=5e-4)
    assert difference.p_better < 0.05


@pytest.mark.parametrize("count", [1, 3, 10, 40])
def test_winning_every_prompt_is_not_certain(count: int) -> None:
    difference = paired_difference([1] * count, [0] * count)
    assert difference.mean == difference.high == 1
    assert difference.low == pytest.approx(1 - math.sqrt(2) * 3.8415 / (count + 3.8415), abs=1e-3)
    assert difference.p_better == pytest.approx(1 - 0.5 ** (count + 1), abs=0.01)
    assert difference.p_better < 1


def test_equal_scores_show_no_winner() -> None:
    for values in ([0.5] * 20, [1.0] * 20, [0.1, 0.7, 0.4, 0.9]):
        difference = paired_difference(values, values)
        assert difference.mean == 0
        assert difference.low < 0 < difference.high
        assert difference.p_better == pytest.approx(0.5, abs=0.02)


def test_a_constant_difference_of_graded_scores_is_not_certain() -> None:
    difference = paired_difference([0.75] * 10, [0.5] * 10)
    assert difference.low < 0.25 < difference.high
    assert 0.5 < difference.p_better < 1


def test_pairing_sees_what_two_intervals_would_miss() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(60) * 0.8
    better = hard + rng.random(60) * 0.1
    assert mean_interval(better)[0] < mean_interval(hard)[1]
    assert paired_difference(better, hard).low > 0


@FEW
@given(
    st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=25)
    | st.lists(st.tuples(BINARY, BINARY), min_size=1, max_size=25)
)
def test_a_difference_holds_its_mean_and_turns_with_its_sides(pairs: list[tuple[float, float]]) -> None:
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert -1 <= forth.low <= forth.mean <= forth.high <= 1
    assert forth.low < forth.high or len(set(zip(a, b, strict=True))) > 1
    assert 0 < forth.p_better < 1
    assert forth.mean == pytest.approx(-back.mean, abs=1e-9)
    assert forth.low == pytest.approx(-back.high, abs=0.05)
    assert forth.p_better == pytest.approx(1 - back.p_better, abs=0.05)


def test_unequal_numbers_of_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="as many on both sides, found 2 and 1"):
        paired_difference([1, 0], [1])


def test_newcombes_interval_covers_what_it_promises() -> None:
    rng = np.random.default_rng(5)
    covered, rounds, prompts = 0, 400, 40
    for _ in range(rounds):
        a = rng.random(prompts) < 0.8
        b = np.where(rng.random(prompts) < 0.5, a, rng.random(prompts) < 0.5)
        difference = paired_difference(a.astype(float), b.astype(float))
        covered += difference.low <= 0.8 - (0.5 * 0.8 + 0.5 * 0.5) <= difference.high
    assert covered / rounds > 0.92
