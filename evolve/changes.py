"""What may be changed of a run that exists, and what would alter its past."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from evolve.budget import Plan, extend_plan
from evolve.config import RunConfig
from evolve.errors import ConfigError
from evolve.evaluation import Summary

_OF_A_JUDGE = (
    "base_url",
    "api_key_env",
    "max_retries",
    "max_reply_retries",
    "timeout_seconds",
    "max_concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "price_per_million",
    "price_per_million.input",
    "price_per_million.output",
    "price_per_million.cached_input",
    "max_usd",
    "max_calls",
    "cache",
    "gpus",
    "gpu_memory_utilization",
    "kv_cache_gib",
    "start_timeout_seconds",
    "batch",
)

# How long the search goes on, how it is watched, and where the work is done.
CHANGEABLE = frozenset(
    {
        "budget.max_fevals",
        "budget.generations",
        "budget.max_hours",
        "search.target_fitness",
        "search.min_sigma",
        "search.stagnation_generations",
        "search.max_failed_share",
        "finalists.top_k",
        *(f"fitness.{judge}.{setting}" for judge in ("judge", "final_judge") for setting in _OF_A_JUDGE),
        "workers.count",
        "workers.tensor_parallel_size",
        "workers.gpus_per_worker",
        "workers.cpus_per_worker",
        "workers.ray_address",
        "workers.gpu_memory_utilization",
        "workers.kv_cache_gib",
        "workers.enforce_eager",
        "workers.max_attempts",
        "workers.evaluation_timeout_seconds",
        "workers.start_timeout_seconds",
        "workers.split_prompts",
        "stop",
    }
)

# These may change what is computed a little; ``cautions`` says so.
_CAUTIONS = {
    "workers.tensor_parallel_size": "last digits can differ from there on",
    "workers.enforce_eager": "last digits can differ from there on",
    "workers.split_prompts": "last digits can differ from there on",
    "fitness.judge.base_url": "scores before and after compare only if it is the same judge",
    "fitness.final_judge.base_url": "scores before and after compare only if it is the same judge",
}

_JUDGES = ("fitness.judge.", "fitness.final_judge.")
_LENGTHS = {"budget.max_fevals", "budget.generations"}
OF_THE_PLAN = {*_LENGTHS, "finalists.top_k"}

_ASKED = "what is recorded was asked and scored with it, and what follows could not be compared"
_REASONS = {
    "genome": "the recorded genotypes would decode to other merges",
    "seed": "the search would have asked other candidates",
    "search": "the search would have asked other candidates",
    "budget": "the search would have asked other candidates",
    "prompts": _ASKED,
    "generation": _ASKED,
    "chat": _ASKED,
    "fitness": _ASKED,
    "finalists": "finalists that are recorded were asked otherwise",
    "workers": "engines and types differ in the last digits of what they compute",
    "baselines": "parents and baselines are evaluated before the search",
    "store": "the history lies there",
    "root": "the files that the config names would be others",
}


def changed_settings(old: RunConfig, new: RunConfig, *, judged: bool = True) -> dict[str, tuple[Any, Any]]:
    """What differs: dotted path to (old, new) value.

    Unsetting one of the two that say how long the search goes on says nothing, and is no change.

    Args:
        old: the run's.
        new: as it is wished.
        judged: whether any score is recorded; before that all of a judge's settings can be mended.

    Raises:
        ConfigError: a setting that would alter the past of the run.
    """
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    found = {
        path: (before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }
    for path, (was, wanted) in found.items():
        if path not in CHANGEABLE and (judged or not path.startswith(_JUDGES)):
            block = path.split(".")[0]
            near = sorted(name for name in CHANGEABLE if name.split(".")[0] == block)
            raise ConfigError(
                f"{path}: cannot be changed from {was!r} to {wanted!r} in a run that exists: {_REASONS[block]}. "
                "Start a new run, or leave it as it is."
                + (f" Of {block}, these can be changed: {', '.join(near)}." if near else "")
            )
    return {path: values for path, values in found.items() if not (path in _LENGTHS and values[1] is None)}


def changed_plan(
    plan: Plan,
    config: RunConfig,
    found: Collection[str],
    *,
    searched: Sequence[Summary],
    finalists: int,
) -> Plan:
    """What a run will evaluate after a change.

    Args:
        plan: the present plan.
        config: the config with the change.
        found: paths of what was changed.
        searched: what is recorded of the search.
        finalists: evaluations of finalists that are recorded.

    Raises:
        ConfigError: less would remain than is recorded.
    """
    if not OF_THE_PLAN.intersection(found):
        return plan
    places = [(row.generation or 0, row.index or 0) for row in searched]
    behind = [index for _, index in places if index >= plan.popsize]
    begun = [generation for generation, index in places if index < plan.popsize]
    return extend_plan(
        plan,
        max_fevals=config.budget.max_fevals if "budget.max_fevals" in found else None,
        generations=config.budget.generations if "budget.generations" in found else None,
        begun=max(begun, default=-1) + 1,
        apart=len(behind),
        apart_places=max(behind, default=plan.popsize - 1) + 1 - plan.popsize,
        top_k=config.finalists.top_k,
        finalists=finalists,
    )


def cautions(found: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """What a reader of the results should know about changes that were allowed."""
    return [
        f"{path} was changed from {was!r} to {now!r}: {_CAUTIONS[path]}."
        for path, (was, now) in found.items()
        if path in _CAUTIONS
    ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested blocks as dotted paths; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
