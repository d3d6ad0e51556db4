"""What a winner is compared with: the parents, the equal-weight merge, recipes that the user lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from pydantic import ValidationError

from evolve.config import RunConfig, read_yaml
from evolve.errors import ConfigError
from evolve.evaluation import Candidate, Kind
from evolve.genome import Genome
from evolve.methods import RANDOM_MASKS
from evolve.resources import cache_dir
from workers.job import Split
from workers.models import Parent, resolve_parents
from workers.recipe import Recipe, parent_recipe

SPLITS: tuple[Split, Split] = ("search", "validation")


def parents_of(config: RunConfig, recipes: Sequence[Recipe] = ()) -> dict[str, Parent]:
    """The genome's models, then its base, then what baseline recipes name besides; as local folders.

    Raises:
        ModelError: one is missing or unsafe.
    """
    names = [*models_of(config), *(name for recipe in recipes for name in _models_of(recipe))]
    return find_parents(config, names)


def models_of(config: RunConfig) -> list[str]:
    """The genome's models, then its base, each once."""
    genome = config.genome
    return list(dict.fromkeys([*genome.models, *([genome.base_model] if genome.base_model else [])]))


def find_parents(config: RunConfig, names: Sequence[str]) -> dict[str, Parent]:
    """Local folders of models, read as the config allows.

    Raises:
        ModelError: one is missing or unsafe.
    """
    return resolve_parents(
        names, cache_dir=cache_dir() / "parents", root=config.root, allow_pickles=config.genome.allow_pickles
    )


def baseline_recipes(config: RunConfig) -> list[Recipe]:
    """The recipes that the user lists to compare with.

    Raises:
        ConfigError: one cannot be read, or mergekit refuses it.
    """
    return [
        _user_recipe(entry, f"baselines.recipes[{index}]", config.root, config.genome.mask_seed)
        for index, entry in enumerate(config.baselines.recipes)
    ]


def baselines(config: RunConfig, genome: Genome, recipes: Sequence[Recipe], out_dtype: str) -> list[Candidate]:
    """Parents first, in the order of the config, each on both splits."""
    source = config.genome.tokenizer_source
    named: list[tuple[Kind, str, Recipe]] = []
    for name in config.genome.models:
        recipe = parent_recipe(name, dtype=config.genome.dtype, out_dtype=out_dtype, tokenizer_source=source)
        named.append(("parent", name, recipe))
    if config.baselines.equal_weights:
        named.append(("baseline", "equal weights", genome.equal_weights()))
    for index, recipe in enumerate(recipes):
        entry = config.baselines.recipes[index]
        named.append(("baseline", entry.stem if isinstance(entry, Path) else f"recipe {index + 1}", recipe))
    repeats = {"search": config.search.repeats, "validation": config.finalist_repeats}
    return [
        Candidate(f"{kind}-{index:02d}-{split}", kind, label, recipe, split, repeats[split])
        for split in SPLITS
        for index, (kind, label, recipe) in enumerate(named)
    ]


def _user_recipe(entry: Path | dict[str, Any], where: str, root: Path, mask_seed: int) -> Recipe:
    data = read_yaml(root / entry) if isinstance(entry, Path) else entry
    try:
        method = MergeConfiguration.model_validate(data).merge_method
    except (ValidationError, RuntimeError) as error:
        raise ConfigError(f"{where}: mergekit refuses this recipe: {' '.join(str(error).split())}") from None
    return Recipe(data, mask_seed=mask_seed if method in RANDOM_MASKS else None)


def _models_of(recipe: Recipe) -> list[str]:
    return sorted(str(m) for m in MergeConfiguration.model_validate(dict(recipe.config)).referenced_models())
