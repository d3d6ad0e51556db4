"""The genome: the coordinate system that turns a genotype in the unit box into a mergekit configuration.

The config block is a superset of mergekit-evolve's ``genome:``. Which parameters a method has, their scope and
their defaults come from mergekit's own registry (``mergekit.merge_methods``), never from a list of ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evolve.errors import ConfigError
from evolve.genome_config import GenomeConfig
from evolve.methods import Method, read_method
from workers.models import Architecture
from workers.recipe import Recipe

# (parameter, model) -> (layer group, filter) -> value in mergekit's units.
Grid = dict[tuple[str, int | None], dict[tuple[int, int], float]]


@dataclass(frozen=True, slots=True)
class Coordinate:
    """One searched number.

    Attributes:
        name: as people and the Optuna dashboard see it: ``weight of persona, layers 0-1, mlp``.
        parameter: mergekit's name of it.
        model: index in the genome's models, ``None`` for a parameter that all models share.
        group: index of the layer group.
        filter: index in the filters; ``len(filters)`` is everything else.
        low, high, init: values in mergekit's units.
        scale: how [0, 1] maps to the range.
    """

    name: str
    parameter: str
    model: int | None
    group: int
    filter: int
    low: float
    high: float
    init: float
    scale: Literal["linear", "log"]

    def decode(self, x: float) -> float:
        """From [0, 1] to mergekit's units, clipped: rounding can leave the range by an ulp."""
        if self.scale == "log":
            value = math.exp(math.log(self.low) + x * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + x * (self.high - self.low)
        return min(max(value, self.low), self.high)

    def encode(self, value: float) -> float:
        """The inverse of :meth:`decode`."""
        if self.scale == "log":
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


class Genome:
    """Decodes genotypes.

    Args:
        config: the genome block.
        architecture: layers and tensor names of the parents; coordinates that would touch no tensor are left out.
        out_dtype: dtype of the stored merge, ``bfloat16`` say.

    Attributes:
        coordinates: the searched numbers, in the order of the genotype.
        notes: what a user should know about this space, shown in the plan.

    Raises:
        ConfigError: an unknown method or parameter, models that the method cannot take, nothing to search.
    """

    def __init__(self, config: GenomeConfig, architecture: Architecture, *, out_dtype: str) -> None:
        self._config = config
        self._architecture = architecture
        self._out_dtype = out_dtype
        self.method: Method = read_method(config)
        self.notes: list[str] = list(self.method.notes)
        self._groups = _layer_groups(config.layer_granularity, architecture.num_layers)
        self._sets = (*config.filters, None)
        alive = self._alive()
        self.coordinates = tuple(self._coordinates(alive))
        if not self.coordinates:
            raise ConfigError(self.method.nothing_to_search())

    @property
    def dimensions(self) -> int:
        """Number of searched coordinates n."""
        return len(self.coordinates)

    @property
    def x0(self) -> NDArray[np.float64]:
        """(n,) float64 in [0, 1]: where the search starts."""
        return np.array([c.encode(c.init) for c in self.coordinates])

    def values(self, genotype: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
        """Coordinate name to decoded value in mergekit's units, for people and for Optuna."""
        if len(genotype) != self.dimensions:
            raise ValueError(f"a genotype of this genome has {self.dimensions} coordinates, got {len(genotype)}")
        return {c.name: c.decode(float(x)) for c, x in zip(self.coordinates, genotype, strict=True)}

    def decode(self, genotype: Sequence[float] | NDArray[np.float64]) -> Recipe:
        """The recipe of a genotype ((n,) float64 in [0, 1]); injective in the searched coordinates."""
        return self._recipe(list(self.values(genotype).values()))

    def equal_weights(self) -> Recipe:
        """The merge in which every parent weighs 1/k; other searched parameters stand at their start."""
        equal = {"t": 0.5} if self.method.name == "slerp" else {}  # elsewhere t is no share
        if not self.method.shares:  # shares start out equal
            equal["weight"] = 1.0 / len(self.method.weighted_models)
        values = [equal.get(c.parameter, c.init) for c in self.coordinates]
        return self._recipe(values)

    def _alive(self) -> set[tuple[int, int]]:
        """(group, filter) pairs whose value reaches at least one tensor, as mergekit would resolve it."""
        groups, last = len(self._groups), len(self._groups) - 1
        pairs: set[tuple[int, int]] = set()
        layers = self._architecture.layers
        reach: list[tuple[str, list[int]]] = []
        if self._config.smooth:
            # mergekit interpolates a list over t = layer / (layers - 1), and takes t = 0 outside the layers.
            reach += [(name, [0]) for name in (*self._architecture.pre, *self._architecture.post)]
            for index, names in enumerate(layers):
                t = index / (len(layers) - 1) if len(layers) > 1 else 1.0
                at = t * last
                touched = [int(at)] + ([min(int(at) + 1, last)] if at > int(at) else [])
                reach += [(name, touched) for name in names]
        else:
            # mergekit reads the embeddings with the first slice and the head with the last.
            reach += [(name, [0]) for name in self._architecture.pre]
            reach += [(name, [last]) for name in self._architecture.post]
            for group in range(groups):
                for index in range(*self._groups[group]):
                    reach += [(name, [group]) for name in layers[index]]
        for name, touched in reach:
            for group in touched:
                pairs.add((group, self._filter_of(name)))
        dead = [f for i, f in enumerate(self._config.filters) if not any(pair[1] == i for pair in pairs)]
        if dead:
            raise ConfigError(
                f"genome.filters: {', '.join(dead)} matches no tensor that an earlier filter leaves over. "
                f"Tensors are named like {layers[0][0]}."
            )
        return pairs

    def _filter_of(self, tensor: str) -> int:
        for index, text in enumerate(self._config.filters):
            if text in tensor:
                return index
        return len(self._config.filters)

    def _coordinates(self, alive: set[tuple[int, int]]) -> list[Coordinate]:
        found = []
        for group in range(len(self._groups)):
            for filter_ in range(len(self._sets)):
                if (group, filter_) not in alive:
                    continue
                for search in self.method.searched:
                    owners: Sequence[int | None] = search.models if search.models is not None else (None,)
                    for model in owners:
                        label = self._label(search.label, model, group, filter_)
                        low, high, init = search.low, search.high, search.init_of(model)
                        found.append(
                            Coordinate(label, search.name, model, group, filter_, low, high, init, search.scale)
                        )
        return found

    def _label(self, parameter: str, model: int | None, group: int, filter_: int) -> str:
        label = parameter
        if model is not None:
            label += f" of {self.method.short_names[model]}"
        if len(self._groups) > 1:
            first, end = self._groups[group]
            label += f", layers {first}-{end - 1}" if not self._config.smooth else f", point {group}"
        if self._config.filters:
            label += f", {self._sets[filter_] or 'rest'}"
        return label

    def _recipe(self, values: Sequence[float]) -> Recipe:
        grid: Grid = {}
        for coordinate, value in zip(self.coordinates, values, strict=True):
            cell = grid.setdefault((coordinate.parameter, coordinate.model), {})
            cell[coordinate.group, coordinate.filter] = value
        if self.method.shares:
            grid = _spend_shares(grid, self.method.weighted_models)
        config: dict[str, Any] = {"merge_method": self.method.name}
        if len(self._groups) == 1 or self._config.smooth:
            config["models"] = [
                _entry({"model": name}, self._settings(grid, index, None))
                for index, name in enumerate(self.method.models)
            ]
            shared = self._settings(grid, None, None)
        else:
            config["slices"] = [
                _entry(
                    {
                        "sources": [
                            _entry({"model": name, "layer_range": list(bounds)}, self._settings(grid, index, group))
                            for index, name in enumerate(self.method.sources)
                        ]
                    },
                    self._settings(grid, None, group),
                )
                for group, bounds in enumerate(self._groups)
            ]
            shared = {}
        if self.method.base_model is not None:
            config["base_model"] = self.method.base_model
        if parameters := {**self.method.fixed, **shared}:
            config["parameters"] = parameters
        config |= {"dtype": self._config.dtype, "out_dtype": self._out_dtype}
        if self._config.tokenizer_source is not None:
            config["tokenizer_source"] = self._config.tokenizer_source
        return Recipe(config, mask_seed=self._config.mask_seed if self.method.random_masks else None)

    def _settings(
        self,
        grid: Grid,
        model: int | None,
        group: int | None,
    ) -> dict[str, Any]:
        """mergekit's ``parameters`` of one model (or the shared ones), in one slice or over all groups."""
        settings: dict[str, Any] = {}
        for (parameter, owner), cells in grid.items():
            if owner != model:
                continue
            per_set = []
            for filter_ in range(len(self._sets)):
                groups = range(len(self._groups)) if group is None else (group,)
                series = [cells.get((g, filter_)) for g in groups]
                known = [value for value in series if value is not None]
                if not known:
                    continue  # no tensor asks for it
                # A group without tensors of this set is never read; its neighbour's value keeps the list whole.
                filled = [value if value is not None else known[0] for value in series]
                per_set.append((self._sets[filter_], filled if len(filled) > 1 else filled[0]))
            if not self._config.filters:
                if per_set:
                    settings[parameter] = per_set[0][1]
            else:
                settings[parameter] = [
                    {"filter": text, "value": value} if text is not None else {"value": value}
                    for text, value in per_set
                ]
        return settings


def _entry(head: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    return {**head, "parameters": parameters} if parameters else head


def _layer_groups(granularity: int, num_layers: int) -> list[tuple[int, int]]:
    if granularity == 0 or granularity >= num_layers:
        return [(0, num_layers)]
    if num_layers % granularity:
        divisors = [d for d in range(1, num_layers + 1) if num_layers % d == 0]
        raise ConfigError(
            f"genome.layer_granularity: {granularity} does not divide the {num_layers} layers of the parents; "
            f"use one of {', '.join(map(str, divisors))}, or 0 for all layers alike."
        )
    return [(start, start + granularity) for start in range(0, num_layers, granularity)]


def _spend_shares(grid: Grid, models: Sequence[int]) -> Grid:
    """Shares to weights by stick breaking: each model takes its share of what is left, the last takes the rest."""
    result = {key: dict(cells) for key, cells in grid.items()}
    cells = result[("weight", models[0])].keys()
    left = dict.fromkeys(cells, 1.0)
    for model in models[:-1]:
        shares = result[("weight", model)]
        for cell in cells:
            shares[cell], left[cell] = left[cell] * shares[cell], left[cell] * (1.0 - shares[cell])
    result[("weight", models[-1])] = left
    return result
