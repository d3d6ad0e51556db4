from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.driver import Driver, Genotype

Objective = Callable[[Genotype], float]


def sphere(at: float = 0.3) -> Objective:
    return lambda x: -float(((x - at) ** 2).sum())


def populations(
    driver: Driver,
    generations: int,
    objective: Objective | None = None,
    between: Callable[[], object] = lambda: None,
) -> list[Genotype]:
    """All genotypes asked in some generations."""
    objective = objective or sphere()
    asked: list[Genotype] = []
    for _ in range(generations):
        population = driver.ask()
        asked += population
        between()
        driver.tell(population, [objective(x) for x in population])
        between()
    return asked


def start(n: int = 5, seed: int = 0, popsize: int = 8) -> Driver:
    return Driver(np.full(n, 0.5), sigma0=0.25, popsize=popsize, seed=seed)


def identical(a: list[Genotype], b: list[Genotype]) -> bool:
    return len(a) == len(b) and all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_the_same_seed_gives_bit_identical_populations(seed: int) -> None:
    assert identical(populations(start(seed=seed), 12), populations(start(seed=seed), 12))


def test_seeds_differ_and_zero_is_a_seed_like_any_other() -> None:
    firsts = {start(seed=seed).ask()[0].tobytes() for seed in range(20)}
    assert len(firsts) == 20


def test_draws_from_numpys_global_generator_change_nothing() -> None:
    undisturbed = populations(start(), 12)

    def disturb() -> None:
        np.random.random(10_000)

    assert identical(populations(start(), 12, between=disturb), undisturbed)


def test_reseeding_numpys_global_generator_changes_nothing() -> None:
    assert identical(populations(start(), 12, between=lambda: np.random.seed(3)), populations(start(), 12))


def test_numpys_global_generator_is_neither_read_nor_written() -> None:
    np.random.seed(11)
    before = np.random.get_state()
    driver = start()
    populations(driver, 12)
    driver.tell(driver.ask(), [0.0] * 8)  # a restart too
    driver.sample(3)
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.floats(0.01, 1),
    st.integers(2, 12),
    st.integers(0, 2**32),
)
def test_candidates_stay_in_the_box(x0: list[float], sigma0: float, popsize: int, seed: int) -> None:
    driver = Driver(x0, sigma0=sigma0, popsize=popsize, seed=seed)
    asked = populations(driver, 3, objective=sphere(1.5)) + driver.sample(2)
    assert len(asked) == 3 * popsize + 2
    for genotype in asked:
        assert genotype.shape == (len(x0),)
        assert genotype.dtype == np.float64
        assert ((genotype >= 0) & (genotype <= 1)).all()
    assert ((driver.mean >= 0) & (driver.mean <= 1)).all()


@pytest.mark.parametrize("x0", [[0.5, 0.5], [0.2, 0.9], [0.0, 1.0]])
def test_the_mean_starts_where_it_was_put(x0: list[float]) -> None:
    driver = Driver(x0, sigma0=0.25, popsize=6, seed=0)
    assert driver.mean == pytest.approx(x0, abs=1e-6)
    assert driver.sigma == pytest.approx(0.25)


@pytest.mark.parametrize("at", [0.0, 0.3, 1.0])
def test_one_dimension_works(at: float) -> None:
    driver = Driver([0.5], sigma0=0.25, popsize=4, seed=0)
    populations(driver, 25, objective=sphere(at))
    assert driver.mean == pytest.approx([at], abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_a_sphere_in_the_box_is_optimised_within_400_evaluations(seed: int) -> None:
    driver = start(n=6, seed=seed, popsize=10)
    asked = populations(driver, 40)
    assert max(map(sphere(), asked)) > -1e-3
    assert driver.mean == pytest.approx([0.3] * 6, abs=0.02)
    assert driver.sigma < 0.05
    assert driver.restarts == 0


def test_an_optimum_on_the_border_is_found() -> None:
    driver = start(n=4, popsize=10)
    asked = populations(driver, 40, objective=sphere(1.0))
    assert max(map(sphere(1.0), asked)) > -1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_fitness_that_is_no_number_is_refused(bad: float) -> None:
    driver = start()
    with pytest.raises(ValueError, match="fitness must be finite or None"):
        driver.tell(driver.ask(), [0.1] * 7 + [bad])


def test_a_fitness_for_every_genotype_is_needed() -> None:
    driver = start()
    with pytest.raises(ValueError, match="told 3 fitness values for 8 genotypes"):
        driver.tell(driver.ask(), [0.1] * 3)


def test_a_failed_candidate_counts_as_the_worst() -> None:
    def after(worst: float | None) -> list[Genotype]:
        driver = start()
        population = driver.ask()
        driver.tell(population, [worst, 0.2, 0.5, 0.3, 0.9, 0.4, 0.6, 0.7])
        return driver.ask()

    assert identical(after(None), after(0.2))
    assert not identical(after(None), after(0.95))


@pytest.mark.parametrize("fitness", [[0.0] * 8, [0.7] * 8, [None] * 8, [None, *[0.0] * 7]])
def test_a_generation_that_ties_says_nothing_and_the_search_restarts_elsewhere(fitness: list[float | None]) -> None:
    driver = start()
    populations(driver, 3)
    before = driver.mean
    assert driver.tell(driver.ask(), fitness) is False
    assert driver.restarts == 1
    assert driver.sigma == pytest.approx(0.25 * 1.25)
    # The mean to report stays that of the last distribution that has learned something ...
    assert (driver.mean == before).all()
    # ... and the next population is drawn elsewhere.
    assert np.abs(np.mean(driver.ask(), axis=0) - before).max() > 0.1


def test_restarts_are_deterministic_and_wider_up_to_a_third_of_the_box() -> None:
    def plateau() -> list[Genotype]:
        driver = start(seed=4)
        asked = populations(driver, 8, objective=lambda _: 0.0)
        assert driver.restarts == 8
        assert driver.sigma == pytest.approx(1 / 3)
        return asked + populations(driver, 5)

    assert identical(plateau(), plateau())


def test_a_search_finds_its_way_after_a_plateau() -> None:
    driver = start(n=3, popsize=8)
    populations(driver, 2, objective=lambda _: 0.0)
    populations(driver, 40)
    assert driver.mean == pytest.approx([0.3] * 3, abs=0.02)


def test_an_informative_generation_is_told_as_such() -> None:
    driver = start()
    assert driver.tell(driver.ask(), list(range(8))) is True
    assert driver.restarts == 0


def test_a_failure_beside_different_scores_is_informative() -> None:
    driver = start()
    assert driver.tell(driver.ask(), [None, *range(7)]) is True


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-15, 1e-2), st.integers(0, 1000))
def test_stored_genotypes_that_differ_from_those_asked_are_accepted(drift: float, seed: int) -> None:
    driver = start(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        stored = [np.clip(x + rng.uniform(-drift, drift, 5), 0, 1) for x in driver.ask()]
        assert driver.tell(stored, [sphere()(x) for x in stored]) is True
    assert np.isfinite(driver.mean).all()
    assert np.isfinite(driver.sigma)


def test_a_search_whose_genotypes_drifted_still_converges() -> None:
    driver, rng = start(popsize=10), np.random.default_rng(0)
    for _ in range(40):
        stored = [np.clip(x + rng.normal(0, 1e-9, 5), 0, 1) for x in driver.ask()]
        driver.tell(stored, [sphere()(x) for x in stored])
    assert driver.mean == pytest.approx([0.3] * 5, abs=0.02)


def test_genotypes_on_the_border_of_the_box_can_be_told() -> None:
    driver = start(n=3)
    stored = [np.clip(np.round(x * 2) / 2, 0, 1) for x in driver.ask()]
    assert driver.tell(stored, [float(i) for i in range(8)]) is True
    assert np.isfinite(driver.mean).all()


def test_samples_are_as_many_as_asked_for_and_deterministic() -> None:
    def draw() -> list[Genotype]:
        driver = start()
        populations(driver, 3)
        return driver.sample(5)

    assert len(draw()) == 5
    assert identical(draw(), draw())


def test_equal_scores_but_one_still_improve() -> None:
    driver = start()
    population = driver.ask()
    best = int(np.argmin([((x - 0.9) ** 2).sum() for x in population]))
    before = np.abs(driver.mean - population[best]).sum()
    driver.tell(population, [1.0 if i == best else 0.0 for i in range(8)])
    assert np.abs(driver.mean - population[best]).sum() < before
