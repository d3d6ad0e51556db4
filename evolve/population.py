"""What a generation was asked, kept before anything of it is evaluated.

Another machine or library can ask otherwise for the same seed. A generation that was begun goes on with the points it
was begun with, so that a finished transcript without its row is found again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evolve.outcome import write_durably

if TYPE_CHECKING:
    from evolve.driver import Genotype

_FILE = "population.json"


def keep_population(folder: Path, generation: int, asked: list[Genotype]) -> list[Genotype]:
    """Write down what is asked, or read what was asked when this generation was begun.

    Args:
        folder: the run's.
        generation: 0-based.
        asked: popsize genotypes, each (n,) float64.

    Returns:
        The population that is to be evaluated, bit by bit as it was written.
    """
    path = folder / _FILE
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["generation"] == generation:
            return [np.array(genotype, dtype=np.float64) for genotype in before["genotypes"]]
    content = {"generation": generation, "genotypes": [genotype.tolist() for genotype in asked]}
    write_durably(path, json.dumps(content))
    return asked
