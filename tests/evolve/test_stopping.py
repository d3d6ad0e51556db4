from __future__ import annotations

from typing import Any, get_args

import pytest

from evolve.stopping import EXPLANATIONS, Generation, StopConditions, StopReason


def conditions(**changes: Any) -> StopConditions:
    settings: dict[str, Any] = {
        "target_fitness": None,
        "min_sigma": 1e-4,
        "stagnation_generations": 3,
        "max_seconds": None,
    }
    return StopConditions(**settings | changes)


def past(*bests: float | None, sigma: float = 0.2, informative: bool = True) -> list[Generation]:
    return [Generation(i, best, best, 0, sigma, informative) for i, best in enumerate(bests)]


def tied(number: int, best: float | None = 0.0, sigma: float = 0.3) -> Generation:
    return Generation(number, best, best, 0, sigma, informative=False)


def test_every_reason_is_explained() -> None:
    assert EXPLANATIONS.keys() == set(get_args(StopReason))


def test_nothing_stops_a_search_that_has_not_begun() -> None:
    assert conditions(target_fitness=-1.0).check([], seconds=0) is None


def test_nothing_stops_a_search_that_gets_better() -> None:
    assert conditions().check(past(*[i / 10 for i in range(9)]), seconds=1e9) is None


@pytest.mark.parametrize(("seconds", "reason"), [(59.9, None), (60, "wall_clock"), (1e6, "wall_clock")])
def test_wall_clock(seconds: float, reason: str | None) -> None:
    assert conditions(max_seconds=60).check(past(0.1), seconds=seconds) == reason
    assert conditions(max_seconds=60).check([], seconds=seconds) == reason


@pytest.mark.parametrize(("best", "reason"), [(0.89, None), (0.9, "target_fitness"), (1.0, "target_fitness")])
def test_target_fitness(best: float, reason: str | None) -> None:
    assert conditions(target_fitness=0.9).check(past(0.2, best), seconds=0) == reason


def test_a_target_reached_earlier_counts() -> None:
    assert conditions(target_fitness=0.9).check(past(0.95, 0.2), seconds=0) == "target_fitness"


def test_a_target_of_zero_is_a_target() -> None:
    assert conditions(target_fitness=0.0).check(past(-0.1, 0.0), seconds=0) == "target_fitness"


@pytest.mark.parametrize(("sigma", "reason"), [(2e-4, None), (1e-4, None), (0.9e-4, "min_sigma")])
def test_min_sigma(sigma: float, reason: str | None) -> None:
    assert conditions().check(past(0.1, 0.2, sigma=sigma), seconds=0) == reason


def test_a_small_step_before_a_restart_is_no_collapse() -> None:
    history = [*past(0.1, 0.2, sigma=1e-5), tied(2)]
    assert conditions().check(history, seconds=0) is None


@pytest.mark.parametrize(
    ("bests", "reason"),
    [
        ((0.5, 0.5, 0.5), None),
        ((0.5, 0.4, 0.3, 0.5), "stagnation"),
        ((0.1, 0.2, 0.2, 0.2, 0.2), "stagnation"),
        ((0.5, 0.4, 0.4, 0.6), None),
        ((0.5, 0.4, 0.4, 0.6, 0.5, 0.5), None),
        ((0.5, None, None, None), "stagnation"),
    ],
)
def test_stagnation_counts_generations_without_a_better_best(bests: Any, reason: str | None) -> None:
    assert conditions().check(past(*bests), seconds=0) == reason


def test_a_plateau_is_no_stagnation() -> None:
    history = [tied(i) for i in range(50)]
    assert conditions().check(history, seconds=0) is None


def test_generations_that_all_failed_are_no_stagnation() -> None:
    assert conditions().check([tied(i, best=None) for i in range(50)], seconds=0) is None


def test_leaving_a_plateau_starts_the_count_anew() -> None:
    history = [*past(0.5, 0.4, 0.4), tied(3, best=0.4), *past(0.4, 0.4)]
    assert conditions().check(history, seconds=0) is None
    assert conditions().check([*history, *past(0.4)], seconds=0) == "stagnation"


def test_the_wall_clock_comes_before_the_others() -> None:
    found = conditions(max_seconds=1, target_fitness=0.5).check(past(0.9, sigma=1e-9), seconds=2)
    assert found == "wall_clock"
    assert conditions(target_fitness=0.5).check(past(0.9, sigma=1e-9), seconds=2) == "target_fitness"
