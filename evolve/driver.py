"""CMA-ES by ask and tell, inside the unit box, from a random source of its own.

The only module that knows pycma, and the only place with a minus sign: everywhere else fitness is maximised.
Algorithm: Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772. Bounds: pycma's BoundTransform.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

with warnings.catch_warnings():
    # pycma says at import that it cannot plot; we plot with other means.
    warnings.filterwarnings("ignore", message="Could not import matplotlib", category=UserWarning)
    import cma

Genotype = NDArray[np.float64]

_LARGEST_STEP = 1 / 3  # as pycma's option maxstd_boundrange


class Driver:
    """Proposes genotypes and learns from their fitness.

    A generation in which all scored candidates tie says nothing about direction: it is not told. The driver
    then restarts from a fresh point of the box with a wider step, so that a plateau is left, not settled on.

    Args:
        x0: (n,) float64 in [0, 1], the first distribution mean.
        sigma0: first step size, in units of the unit box.
        popsize: candidates per generation.
        seed: of the driver's own generator; 0 is a seed like any other. numpy's global generator is neither
            read nor written (pycma's ``randn`` option replaces it, ``seed: nan`` keeps pycma from reseeding it).
    """

    def __init__(self, x0: Sequence[float] | Genotype, *, sigma0: float, popsize: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._spare = np.random.default_rng([seed, 1])  # for draws that are not told
        self._popsize = popsize
        self._sigma0 = sigma0
        self._restarts = 0
        self._mean_before_restart: Genotype | None = None
        self._start(np.asarray(x0, dtype=np.float64), sigma0)

    def _start(self, x0: Genotype, sigma: float) -> None:
        n = len(x0)
        self._es = cma.CMAEvolutionStrategy(
            list(x0),
            sigma,
            {
                "bounds": [[0.0] * n, [1.0] * n],
                # pycma caps the step at a third of the box, and raises when it has to with one coordinate: see tell.
                **({"maxstd": np.inf} if n == 1 else {}),
                "popsize": self._popsize,
                "seed": np.nan,
                "randn": lambda *shape: self._rng.standard_normal(shape),
                "verbose": -9,
                "verb_log": 0,
            },
        )

    @property
    def sigma(self) -> float:
        """The step size, in units of the unit box."""
        return float(self._es.sigma)

    @property
    def mean(self) -> Genotype:
        """(n,) float64 in [0, 1]: the mean of the last distribution that has learned something."""
        if self._mean_before_restart is not None:
            return self._mean_before_restart
        return np.clip(np.asarray(self._es.result.xfavorite, dtype=np.float64), 0.0, 1.0)

    @property
    def restarts(self) -> int:
        """How often a plateau made the search start elsewhere."""
        return self._restarts

    def ask(self) -> list[Genotype]:
        """The next population: ``popsize`` genotypes, each (n,) float64 in [0, 1]."""
        return [np.clip(np.asarray(x, dtype=np.float64), 0.0, 1.0) for x in self._es.ask()]

    def sample(self, count: int) -> list[Genotype]:
        """``count`` more draws from the present distribution, not meant to be told.

        They come from a random source of their own: the next population, should there be one after all, is neither
        changed by them nor the same.
        """
        self._rng, own = self._spare, self._rng
        try:
            drawn = self._es.ask(number=count)
        finally:
            self._rng = own
        return [np.clip(np.asarray(x, dtype=np.float64), 0.0, 1.0) for x in drawn]

    def tell(self, genotypes: Sequence[Genotype], fitness: Sequence[float | None]) -> bool:
        """Learn from one generation.

        Args:
            genotypes: as they were evaluated; those stored, where they differ from those asked.
            fitness: to be maximised, finite; ``None`` for a failed candidate, which counts as the worst.

        Returns:
            False where the generation said nothing (all tied or all failed) and the search restarted elsewhere.

        Raises:
            ValueError: a fitness that is NaN or infinite, or lengths that differ.
        """
        if len(genotypes) != len(fitness):
            raise ValueError(f"told {len(fitness)} fitness values for {len(genotypes)} genotypes")
        scored = [f for f in fitness if f is not None]
        if not all(np.isfinite(f) for f in scored):
            raise ValueError(f"fitness must be finite or None, got {fitness}")
        if not scored or max(scored) == min(scored):
            self._restart()
            return False
        self._mean_before_restart = None
        worst = min(scored)
        self._es.tell(list(genotypes), [-(worst if f is None else f) for f in fitness])
        if len(self.mean) == 1 and (step := float(self._es.stds[0])) > _LARGEST_STEP:
            self._es.sigma *= _LARGEST_STEP / step
        return True

    def _restart(self) -> None:
        self._restarts += 1
        self._mean_before_restart = self.mean
        x0 = self._rng.uniform(0.1, 0.9, size=len(self.mean))
        self._start(x0, min(self._sigma0 * 1.25**self._restarts, _LARGEST_STEP))
