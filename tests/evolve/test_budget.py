from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evolve.budget import BudgetConfig, Plan, default_popsize, extend_plan, make_plan, resolve_search
from evolve.errors import ConfigError

unhurried = settings(deadline=None)  # the machine may be busy

dimensions = st.integers(1, 400)
workers = st.integers(1, 16)
maybe = {
    "max_fevals": st.none() | st.integers(2, 3000),
    "generations": st.none() | st.integers(1, 300),
    "popsize": st.none() | st.integers(2, 200),
}


def plan(n: int = 8, **settings: Any) -> Plan:
    given_budget = {k: v for k, v in settings.items() if k in BudgetConfig.model_fields}
    rest = {"workers": 1, "noisy": False, "baseline_models": 3, "top_k": 3}
    rest |= {k: v for k, v in settings.items() if k not in given_budget}
    return make_plan(dimensions=n, budget=BudgetConfig(**given_budget), **rest)


@unhurried
@given(dimensions, workers, st.booleans(), st.fixed_dictionaries(maybe), st.integers(1, 9))
def test_budget_never_exceeds_max_fevals_and_adds_up(
    n: int, count: int, noisy: bool, budget: dict[str, int | None], top_k: int
) -> None:
    try:
        found = plan(n, **budget, workers=count, noisy=noisy, top_k=top_k)
    except ConfigError:
        assume(False)
    if budget["max_fevals"] is not None:
        assert found.max_fevals == budget["max_fevals"]
    assert found.search_evaluations <= found.max_fevals
    assert found.generations * found.popsize + found.remainder == found.search_evaluations
    assert found.remainder >= 0
    assert found.generations >= 1
    assert found.popsize >= 2
    for name, value in budget.items():
        assert value in (None, getattr(found, name)), f"{name} was given and not kept"
    assert found.baselines == 2 * 3
    assert found.finalists >= 2
    assert found.total_evaluations == found.search_evaluations + found.baselines + found.finalists
    assert found.to_dict()["remainder"] == found.remainder


@unhurried
@given(dimensions, workers, st.booleans(), st.fixed_dictionaries(maybe))
def test_what_was_resolved_resolves_to_itself(n: int, count: int, noisy: bool, budget: dict[str, int | None]) -> None:
    """Where the remainder does not hold a whole generation, all three numbers are consistent."""
    try:
        popsize, generations, max_fevals = resolve_search(dimensions=n, workers=count, noisy=noisy, **budget)
    except ConfigError:
        assume(False)
    assume(generations == max_fevals // popsize)
    again = {"max_fevals": max_fevals, "generations": generations, "popsize": popsize}
    assert resolve_search(dimensions=n, workers=count, noisy=noisy, **again) == (popsize, generations, max_fevals)


@unhurried
@given(dimensions, workers, st.integers(2, 3000), st.integers(2, 200))
def test_max_fevals_and_popsize_give_generations(n: int, count: int, max_fevals: int, popsize: int) -> None:
    assume(popsize <= max_fevals)
    found = plan(n, max_fevals=max_fevals, popsize=popsize, workers=count)
    assert (found.generations, found.remainder) == divmod(max_fevals, popsize)


@unhurried
@given(dimensions, workers, st.integers(1, 300), st.integers(2, 200))
def test_generations_and_popsize_give_max_fevals(n: int, count: int, generations: int, popsize: int) -> None:
    found = plan(n, generations=generations, popsize=popsize, workers=count)
    assert (found.max_fevals, found.remainder) == (generations * popsize, 0)


@unhurried
@given(dimensions, workers, st.integers(2, 3000), st.integers(1, 300))
def test_max_fevals_and_generations_give_popsize(n: int, count: int, max_fevals: int, generations: int) -> None:
    assume(max_fevals // generations >= 2)
    found = plan(n, max_fevals=max_fevals, generations=generations, workers=count)
    assert found.popsize == max_fevals // generations
    assert found.remainder < generations


@unhurried
@given(dimensions, workers, st.booleans())
def test_the_default_popsize_is_pycmas_rounded_up_to_the_workers(n: int, count: int, noisy: bool) -> None:
    pycma = (4 + math.floor(3 * math.log(n))) * (2 if noisy else 1)
    popsize = default_popsize(n, workers=count, noisy=noisy)
    assert popsize % count == 0
    assert pycma <= popsize < pycma + count


def test_high_noise_doubles_the_default_popsize() -> None:
    assert plan(32, max_fevals=200).popsize == 14
    assert plan(32, max_fevals=200, noisy=True).popsize == 28
    assert plan(32, max_fevals=200, noisy=True, popsize=10).popsize == 10


def test_one_dimension_has_four_candidates_a_generation() -> None:
    assert plan(1, max_fevals=10).popsize == 4


def test_max_fevals_alone_is_completed() -> None:
    found = plan(8, max_fevals=60, workers=4)
    assert (found.popsize, found.generations, found.remainder, found.search_evaluations) == (12, 5, 0, 60)


def test_generations_alone_are_completed() -> None:
    found = plan(8, generations=7, workers=3)
    assert (found.popsize, found.generations, found.max_fevals) == (12, 7, 84)


def test_a_budget_below_the_default_popsize_is_one_generation_of_all_of_it() -> None:
    found = plan(100, max_fevals=5, workers=8)
    assert (found.popsize, found.generations, found.remainder) == (5, 1, 0)


@unhurried
@given(st.integers(2, 500), st.integers(1, 100), st.integers(2, 100))
def test_three_numbers_that_contradict_each_other_show_the_arithmetic(
    max_fevals: int, generations: int, popsize: int
) -> None:
    consistent = generations == max_fevals // popsize
    if consistent:
        assert plan(max_fevals=max_fevals, generations=generations, popsize=popsize).max_fevals == max_fevals
        return
    with pytest.raises(ConfigError) as caught:
        plan(max_fevals=max_fevals, generations=generations, popsize=popsize)
    message = str(caught.value)
    assert f"{max_fevals} // {popsize} = {max_fevals // popsize} generations, not {generations}" in message
    assert "Give two of the three" in message


@pytest.mark.parametrize("popsize", [None, 8])
def test_a_budget_without_an_end_says_what_to_give(popsize: int | None) -> None:
    with pytest.raises(ConfigError, match=r"give budget\.max_fevals .* or budget\.generations; budget\.popsize alone"):
        plan(popsize=popsize)


def test_a_popsize_above_the_budget_says_how_far_to_go() -> None:
    with pytest.raises(ConfigError, match=r"budget\.popsize 20 is larger than budget\.max_fevals 10.*at most 10"):
        plan(max_fevals=10, popsize=20)


def test_too_many_generations_say_how_far_to_go() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(max_fevals=10, generations=8)
    assert "leaves a popsize of 1; CMA-ES needs at least 2" in str(caught.value)
    assert "Raise budget.max_fevals to 16 or lower budget.generations to 5" in str(caught.value)
    assert plan(max_fevals=16, generations=8).popsize == 2
    assert plan(max_fevals=10, generations=5).popsize == 2


@pytest.mark.parametrize(
    "budget", [{"max_fevals": 1}, {"max_fevals": 0}, {"generations": 0}, {"popsize": 1}, {"max_hours": 0}]
)
def test_numbers_that_mean_nothing_are_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BudgetConfig(**budget)


@unhurried
@given(st.integers(1, 12), st.integers(1, 6), st.integers(2, 12), st.data())
def test_finalists_are_the_leaders_there_can_be_and_the_mean(
    generations: int, popsize: int, top_k: int, data: st.DataObject
) -> None:
    popsize = max(popsize, 2)
    remainder = data.draw(st.integers(0, popsize - 1))
    found = plan(max_fevals=generations * popsize + remainder, popsize=popsize, top_k=top_k)
    # the mean is one of the remainder's candidates, else it is asked once more on the search prompts
    others = found.search_evaluations - (1 if remainder else 0)
    assert found.finalists == 1 + min(top_k, others) + (0 if remainder else 1)


@unhurried
@given(st.integers(0, 9))
def test_baselines_are_counted_on_both_splits(models: int) -> None:
    assert plan(max_fevals=10, baseline_models=models).baselines == 2 * models


@unhurried
@given(st.integers(2, 60), st.integers(2, 12), st.data())
def test_an_extended_plan_keeps_what_is_recorded_and_the_new_cap(first: int, popsize: int, data: st.DataObject) -> None:
    """Budget after budget; at any moment all of some generations, and any part of the remainder, may be recorded."""
    found = plan(max_fevals=max(first, popsize), popsize=popsize)
    apart = places = 0
    for _ in range(data.draw(st.integers(1, 4))):
        begun = data.draw(st.integers(0, found.generations))
        if begun == found.generations:
            apart += data.draw(st.integers(0, found.remainder))
            places = apart + data.draw(st.integers(0, 2))
        cap = data.draw(st.integers(1, 150))
        recorded = apart + begun * popsize
        try:
            found = extend_plan(
                found,
                max_fevals=cap,
                generations=None,
                begun=begun,
                apart=apart,
                apart_places=places,
                top_k=3,
                finalists=0,
            )
        except ConfigError:
            assert cap < apart + max(begun, 1) * popsize
            return
        assert (found.max_fevals, found.popsize) == (cap, popsize)
        assert found.generations * popsize + found.remainder + found.former_remainder == cap
        assert recorded <= cap
        assert 0 <= found.remainder < popsize


def test_an_extension_by_generations_counts_what_was_spent_apart() -> None:
    former = plan(max_fevals=40, popsize=6)  # 6 generations and 4 apart
    found = extend_plan(former, max_fevals=None, generations=10, begun=6, apart=4, apart_places=4, top_k=3, finalists=0)
    assert (found.max_fevals, found.remainder, found.former_remainder) == (64, 0, 4)
    same = extend_plan(
        former, max_fevals=None, generations=None, begun=6, apart=4, apart_places=4, top_k=3, finalists=0
    )
    assert same == former


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (
            (30, None),
            "6 generations of 6 are recorded or under way and 4 evaluations apart.*can be 40 at least, not 30",
        ),
        ((200, 9), r"contradict each other.*\(200 - 4 spent apart\) // 6 = 32 generations"),
    ],
)
def test_an_extension_that_cannot_be_says_why(budget: tuple[int, int | None], words: str) -> None:
    former = plan(max_fevals=40, popsize=6)
    with pytest.raises(ConfigError, match=words):
        extend_plan(
            former, max_fevals=budget[0], generations=budget[1], begun=6, apart=4, apart_places=4, top_k=3, finalists=0
        )
