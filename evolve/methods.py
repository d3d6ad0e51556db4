"""What a merge method can take and what of it is searched, read from mergekit's registry.

mergekit's method specs name the parameters, their types, scopes and defaults
(``mergekit.merge_methods.base.MergeMethodSpec``); what is written here is only what a spec does not say:
which ranges make sense, and which parameters have no effect.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.merge_methods.base import BasePolicy, MergeMethodSpec, ParameterScope, ParameterSpec

from evolve.errors import ConfigError
from evolve.genome_config import GenomeConfig, ParameterRange
from evolve.short_names import short_names

# Methods whose masks are drawn at random, so that no configuration alone identifies the model.
RANDOM_MASKS = {"dare_linear", "dare_ties", "della", "della_linear"}
# mergekit-evolve turned normalisation on for these, whatever the method's own default.
_EVOLVE_NORMALIZES = {"linear", "ties", "dare_ties"}
# Methods that read ``density`` without using it (they do not sparsify).
_DENSITY_UNUSED = {"task_arithmetic"}
# What people usually search, named first in messages.
_USUAL = ("weight", "t", "density")
# Searched by default where the method has them: (min, max). nearswap's t is a weight difference, no share.
_DENSITY = (0.05, 1.0)
_DELLA_DENSITY = (0.2, 0.8)
_DELLA_EPSILON = 0.15


@dataclass(frozen=True, slots=True)
class Searched:
    """One parameter that is searched.

    Attributes:
        name: mergekit's name.
        label: the name shown to people.
        models: indices of the models that have one each, ``None`` where they share one.
        low, high: range in mergekit's units.
        inits: the start for each model (or the one shared).
        scale: linear or log.
    """

    name: str
    label: str
    models: tuple[int, ...] | None
    low: float
    high: float
    inits: tuple[float, ...]
    scale: Literal["linear", "log"] = "linear"

    def init_of(self, model: int | None) -> float:
        """Where the search of one model's value starts."""
        if self.models is None or model is None:
            return self.inits[0]
        return self.inits[self.models.index(model)]


@dataclass(frozen=True)
class Method:
    """A merge method as this genome uses it.

    Attributes:
        name: mergekit's name.
        models: the models listed in the recipe.
        base_model: the recipe's base model, if any.
        short_names: a distinct short name per model, for labels.
        weighted_models: indices of the models that carry a ``weight``.
        searched: parameters that are searched.
        fixed: parameters that are not, as they stand in the recipe.
        shares: weights are searched as shares of one, since only their ratios matter.
        random_masks: the recipe needs a mask seed.
        notes: what a user should know, shown in the plan.
    """

    name: str
    models: tuple[str, ...]
    base_model: str | None
    short_names: tuple[str, ...]
    weighted_models: tuple[int, ...]
    searched: tuple[Searched, ...]
    fixed: dict[str, Any]
    shares: bool
    random_masks: bool
    searchable: tuple[str, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def sources(self) -> tuple[str, ...]:
        """The models that a slice must list: mergekit adds the base by itself only to ``models``."""
        if self.base_model is None or self.base_model in self.models:
            return self.models
        return (*self.models, self.base_model)

    def nothing_to_search(self) -> str:
        """The message for a genome without a searched coordinate."""
        message = f"genome: {self.name} has nothing to search here"
        if not self.searchable:
            return (
                f"{message}: it takes no number that a search could vary. "
                "Merge once with mergekit-yaml, or choose another genome.merge_method."
            )
        return (
            f"{message}; give a range to one of its parameters ({', '.join(self.searchable)}), such as "
            f"genome.parameters.{self.searchable[0]}: {{min: 0.1, max: 1.0}}."
        )


def read_method(config: GenomeConfig) -> Method:
    """The method of a genome block, checked against mergekit's own contract.

    Raises:
        ConfigError: unknown method or parameter, models that do not suit, settings without effect.
    """
    spec = _spec(config.merge_method)
    models, base_model, notes = _inputs(config, spec)
    base_index = models.index(base_model) if base_model in models else None
    non_base = tuple(i for i in range(len(models)) if i != base_index)
    parameters = {p.name: p for p in spec.parameters}
    searchable = tuple(
        sorted((p.name for p in spec.parameters if _searchable(p, spec)), key=lambda name: name not in _USUAL)
    )
    _check_names(config, parameters, searchable)

    settings = dict(config.parameters)
    if "normalize" in parameters and "normalize" not in settings:
        normalize = config.normalize
        if normalize is None:
            normalize = spec.name in _EVOLVE_NORMALIZES or bool(parameters["normalize"].default)
        settings["normalize"] = normalize
    elif config.normalize is not None and "normalize" in parameters and config.normalize != settings["normalize"]:
        raise ConfigError(
            f"genome.normalize is {config.normalize} and genome.parameters.normalize is {settings['normalize']}: "
            "remove one of them."
        )
    elif config.normalize is not None and "normalize" not in parameters:
        raise ConfigError(f"genome.normalize: {spec.name} does not normalise by a setting; remove it.")
    normalised = bool(
        settings.get("normalize", settings.get("normalize_weights", spec.name in ("nuslerp", "multislerp")))
    )
    weighted = non_base if spec.contract.base != BasePolicy.IGNORED else tuple(range(len(models)))
    shares = "weight" in parameters and "weight" not in settings and normalised and not config.allow_negative_weights

    searched: list[Searched] = []
    fixed: dict[str, Any] = {}
    for parameter in spec.parameters:
        owners: tuple[int, ...] | None = None
        if parameter.scope != ParameterScope.SHARED:
            owners = non_base if parameter.scope == ParameterScope.NON_BASE else tuple(range(len(models)))
        setting = settings.get(parameter.name, _default_setting(parameter.name, spec, config, normalised))
        if setting is None:
            continue
        if isinstance(setting, bool | int | float):
            fixed[parameter.name] = setting
        elif parameter.name == "weight" and shares:
            takers = weighted[:-1]  # the last model takes what the others leave
            inits = tuple(1.0 / (len(weighted) - i) for i in range(len(takers)))
            label = "weight" if len(weighted) == 2 else "share of the rest"
            if takers:
                searched.append(Searched("weight", label, takers, 0.0, 1.0, inits))
        else:
            low, high, init, scale = _range(setting, parameter.name, len(weighted))
            count = 1 if owners is None else len(owners)
            searched.append(Searched(parameter.name, parameter.name, owners, low, high, (init,) * count, scale))
    shares = shares and len(weighted) > 1
    if "weight" in parameters and normalised and len(weighted) == 1:
        searched = [s for s in searched if s.name != "weight"]
        fixed.setdefault("weight", 1.0)
    _check_values(spec, settings, searched, fixed)
    notes += _notes(spec, searched, normalised=normalised, shares=shares)
    return Method(
        name=spec.name,
        models=models,
        base_model=base_model,
        short_names=short_names(models),
        weighted_models=weighted,
        searched=tuple(s for s in searched if s.models is None or s.models),
        fixed=fixed,
        shares=shares,
        random_masks=spec.name in RANDOM_MASKS,
        searchable=searchable,
        notes=notes,
    )


def mergeable_methods() -> tuple[str, ...]:
    """Names of the registry's methods that merge same-shaped models (all but ``passthrough``)."""
    return tuple(
        sorted(m.spec.name for m in merge_methods.registry.registered_methods() if m.spec.name != "passthrough")
    )


def _spec(name: str) -> MergeMethodSpec:
    known = mergeable_methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"genome.merge_method: {name!r} is not known; {hint}mergekit has: {', '.join(known)}.")
    return merge_methods.get(name).spec


def _inputs(config: GenomeConfig, spec: MergeMethodSpec) -> tuple[tuple[str, ...], str | None, list[str]]:
    models, base, notes = config.models, config.base_model, []
    if len(set(models)) != len(models):
        raise ConfigError(f"genome.models: a model is listed twice: {', '.join(models)}.")
    policy = spec.contract.base
    if spec.name == "slerp":
        if base is None and len(models) == 2:
            base = models[0]
            notes.append(f"slerp goes from {models[0]} (t = 0) to {models[1]} (t = 1); t itself is searched.")
        elif len(set(models) | ({base} if base else set())) > 2:
            raise ConfigError(
                f"genome.models: slerp joins exactly two models, got {', '.join(models)}"
                + (f" and base_model {base}" if base and base not in models else "")
                + ". mergekit-evolve chose the top two of more by a softmax per layer group, which has no meaning "
                "as a search in bounds: name two models, or use multislerp or karcher for more."
            )
    if policy == BasePolicy.REQUIRED and base is None:
        raise ConfigError(f"genome.base_model: missing; {spec.name} measures the others from a base model.")
    if policy in (BasePolicy.IGNORED, BasePolicy.FORBIDDEN) and base is not None and base not in models:
        raise ConfigError(
            f"genome.base_model: {spec.name} has no base; mergekit would merge {base} in as one more model. "
            "Remove it, or list it under genome.models."
        )
    try:
        inputs = [ModelReference.parse(m) for m in (*models, *([base] if base and base not in models else []))]
        spec.contract.validate_ids(inputs, ModelReference.parse(base) if base else None)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"genome.models: {spec.name}: {error} (models: {', '.join(models)}; base: {base}).") from None
    return models, base, notes


def _searchable(parameter: ParameterSpec, spec: MergeMethodSpec) -> bool:
    """Numbers with a fraction can be searched; integers and switches cannot (decoding would not be injective)."""
    unused = parameter.name == "density" and spec.name in _DENSITY_UNUSED
    return parameter.value_type is float and not unused


def _check_names(config: GenomeConfig, parameters: dict[str, ParameterSpec], searchable: Sequence[str]) -> None:
    for name, setting in config.parameters.items():
        where = f"genome.parameters.{name}"
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            has = ", ".join(parameters) or "no parameters"
            raise ConfigError(f"{where}: {config.merge_method} has no such parameter; {hint}It has: {has}.")
        if name == "density" and config.merge_method in _DENSITY_UNUSED:
            raise ConfigError(
                f"{where}: {config.merge_method} does not sparsify, density has no effect. "
                "Remove it, or use ties or dare_linear."
            )
        if not isinstance(setting, bool | int | float) and name not in searchable:
            raise ConfigError(f"{where}: {parameters[name].value_type.__name__} cannot be searched; give one value.")


def _default_setting(name: str, spec: MergeMethodSpec, config: GenomeConfig, normalised: bool) -> Any:
    """What is done with a parameter that the config does not mention: a range, a number, or None (left to mergekit)."""
    if name == "weight":
        low = -1.0 if config.allow_negative_weights else 0.0
        # A task vector's natural weight is 1 and a little more can pay; normalised weights are ratios.
        return ParameterRange(min=low, max=1.0 if normalised else 1.5)
    if name == "density" and spec.name not in _DENSITY_UNUSED:
        low, high = _DELLA_DENSITY if spec.name.startswith("della") else _DENSITY
        return ParameterRange(min=low, max=high)
    if name == "epsilon" and spec.name.startswith("della"):
        return _DELLA_EPSILON
    if name == "t" and spec.name == "slerp":
        return ParameterRange(min=0.0, max=1.0)
    return None


def _range(setting: ParameterRange, name: str, weighted: int) -> tuple[float, float, float, Literal["linear", "log"]]:
    init = setting.init
    if init is None:
        middle = (setting.min * setting.max) ** 0.5 if setting.scale == "log" else (setting.min + setting.max) / 2
        equal = 1.0 / weighted
        init = equal if name == "weight" and setting.min <= equal <= setting.max else middle
    return setting.min, setting.max, init, setting.scale


def _check_values(
    spec: MergeMethodSpec, settings: dict[str, Any], searched: Sequence[Searched], fixed: dict[str, Any]
) -> None:
    """Limits that mergekit's kernels have and its specs do not say."""
    ranges = {s.name: (s.low, s.high) for s in searched} | {
        name: (float(value), float(value)) for name, value in fixed.items() if not isinstance(value, bool)
    }
    unit = {"density", "select_topk", "gamma"} | ({"t"} if spec.name == "slerp" else set())
    for name in unit & ranges.keys() & settings.keys():
        low, high = ranges[name]
        if low < 0 or high > 1:
            raise ConfigError(f"genome.parameters.{name}: {low} to {high} leaves 0 to 1, where it means something.")
    if spec.name.startswith("della"):
        (low, high), (_, epsilon) = ranges["density"], ranges["epsilon"]
        if low >= 1 and any(s.name == "epsilon" for s in searched):
            raise ConfigError(
                f"genome.parameters.epsilon: with density {low:g} {spec.name} keeps everything and epsilon has no "
                "effect. Give epsilon one value, or lower density."
            )
        # density >= 1 keeps everything, without a look at epsilon; between, both ends must stay inside (0, 1).
        if low < 1 and (low - epsilon <= 0 or high + epsilon >= 1):
            raise ConfigError(
                f"genome.parameters.density: {spec.name} needs density - epsilon above 0 and density + epsilon "
                f"below 1; with density {low} to {high} and epsilon up to {epsilon} it spans {low - epsilon:g} to "
                f"{high + epsilon:g}. Narrow density or lower epsilon."
            )


def _notes(spec: MergeMethodSpec, searched: Sequence[Searched], *, normalised: bool, shares: bool) -> list[str]:
    notes = []
    names = {s.name for s in searched}
    if shares:
        notes.append(
            f"{spec.name} normalises weights, only their ratios matter: they are searched as shares of 1, "
            "one coordinate fewer per layer group and filter."
        )
    elif normalised and "weight" in names:
        notes.append(
            f"{spec.name} normalises weights: scaling all of them changes nothing, so one direction of this space "
            "is redundant. Leave genome.parameters.weight out to search shares instead."
        )
    if {"weight", "lambda"} <= names and not normalised:
        notes.append("lambda scales all weights alike: with weights searched too, one direction is redundant.")
    highest = {s.name: s.high for s in searched}
    if highest.get("density", 0.0) + highest.get("gamma", 0.0) > 1 and "gamma" in names:
        notes.append(
            f"{spec.name} drops fewer of the largest values where density + gamma exceeds 1, so that gamma says "
            "little there: keep the sum of their upper ends at or below 1."
        )
    if spec.name in RANDOM_MASKS:
        notes.append(
            f"{spec.name} draws random masks: ours depend on genome.mask_seed and the tensor's name only; "
            "mergekit-yaml draws others, so export the winner with evolve export."
        )
    return notes
