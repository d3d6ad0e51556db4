from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fitness.power import Noise, detectable_difference, paired_noise, power_finding, prompts_needed

DEVIATIONS = st.floats(1e-3, 2)
COUNTS = st.integers(2, 100_000)


@given(DEVIATIONS, COUNTS, COUNTS)
def test_more_prompts_show_smaller_differences(deviation: float, few: int, many: int) -> None:
    few, many = sorted((few, many))
    least = detectable_difference(deviation, many)
    assert 0 < least <= detectable_difference(deviation, few)
    assert detectable_difference(2 * deviation, many) == pytest.approx(2 * least)


@given(DEVIATIONS, COUNTS)
def test_prompts_and_difference_are_inverse(deviation: float, prompts: int) -> None:
    least = detectable_difference(deviation, prompts)
    assert prompts_needed(deviation, least) == prompts
    assert prompts_needed(deviation, least * 1.0001) <= prompts
    assert prompts_needed(deviation, least * 0.9999) > prompts


@given(DEVIATIONS, st.floats(1e-3, 1), st.floats(1e-3, 1))
def test_smaller_differences_need_more_prompts(deviation: float, small: float, large: float) -> None:
    small, large = sorted((small, large))
    needed = prompts_needed(deviation, small)
    assert needed >= prompts_needed(deviation, large) >= 2
    assert detectable_difference(deviation, needed) <= small


@given(st.integers(5, 5000))
def test_the_power_is_that_of_the_noncentral_t(prompts: int) -> None:
    shift = detectable_difference(1.0, prompts) * prompts**0.5
    critical = stats.t.isf(0.025, prompts - 1)
    assert stats.nct.sf(critical, prompts - 1, shift) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("prompts", [10, 50])
def test_a_simulation_reaches_the_stated_power(prompts: int) -> None:
    rng = np.random.default_rng(0)
    least = detectable_difference(0.3, prompts)
    drawn = rng.normal(least, 0.3, size=(20_000, prompts))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.015)


def test_shares_reach_the_stated_power_too() -> None:
    # Two models right on 60% and 70% of prompts, independently.
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 20_000, 400)) < np.array([0.7, 0.6])[:, None, None]
    differences = a.astype(float) - b
    needed = prompts_needed(float(differences.std()), 0.1)
    assert 300 < needed < 400
    pvalues = stats.ttest_1samp(differences[:, :needed], 0, axis=1).pvalue
    assert (pvalues < 0.05).mean() == pytest.approx(0.8, abs=0.02)


def test_no_noise_needs_two_prompts() -> None:
    assert prompts_needed(0.0, 0.1) == 2
    assert detectable_difference(0.0, 2) == 0


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 prompts"):
        detectable_difference(0.1, 1)
    with pytest.raises(ValueError, match="standard deviation"):
        detectable_difference(float("nan"), 5)
    with pytest.raises(ValueError, match="above 0"):
        prompts_needed(0.1, 0.0)
    with pytest.raises(ValueError, match="as many on both sides"):
        paired_noise([0.1], [0.1, 0.2])


def test_the_noise_of_a_small_probe_may_be_larger() -> None:
    rng = np.random.default_rng(2)
    drawn = rng.normal(0, 0.2, size=(2000, 8))
    noises = [noise for one in drawn if (noise := paired_noise(one.tolist(), [0.0] * 8))]
    assert np.mean([noise.high >= 0.2 for noise in noises]) == pytest.approx(0.9, abs=0.02)
    assert paired_noise([0.5, 0.5, 0.5], [0.4, 0.4, 0.4]) is None
    assert paired_noise([0.5], [0.4]) is None


def test_the_finding_says_how_many_prompts_a_difference_takes() -> None:
    noise = Noise(deviation=0.3, high=0.4, prompts=8)
    note = power_finding(noise, 20, wanted=0.05)
    assert note.level == "note"
    needed, most = prompts_needed(0.3, 0.05), prompts_needed(0.4, 0.05)
    assert f"To show 0.05 takes {needed} to {most} prompts" in note.message
    assert power_finding(noise, needed, wanted=0.05).level == "ok"
    assert power_finding(None, 20).level == "note"


def test_terms_that_did_not_vary_leave_the_noise_unknown() -> None:
    """All answers wrong: their differences are even, and those of models that are right on half of the prompts not."""
    quiet = Noise(deviation=0.05, high=0.07, prompts=16)
    assert power_finding(quiet, 81, wanted=0.05).level == "ok"
    found = power_finding(quiet, 81, wanted=0.05, still={"all_of": 0.8})
    assert found.level == "note"
    assert "come to differ in all_of" in found.message
    # Two models right on half of the prompts each, independently, 0.8 a prompt.
    rng = np.random.default_rng(3)
    a, b = 0.8 * (rng.random((2, 100_000)) < 0.5)
    worst = found.evidence["prompts_needed_at_worst"]
    assert worst == pytest.approx(prompts_needed(float((a - b).std()), 0.05), rel=0.02)
    assert power_finding(None, 81, wanted=0.05, still={"all_of": 1.0}).level == "note"
    assert power_finding(None, 2000, wanted=0.1, still={"all_of": 1.0}).level == "ok"
