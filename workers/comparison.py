"""What the checks of parents share: what a comparison is, where it points to, and how a difference is put in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fitness.findings import Finding
from workers.model_facts import ModelFacts

WHERE = "genome.models"
ALIGN = "Set genome.tokenizer_source to base, union or a model, so that mergekit aligns the vocabularies."
LISTED = 50  # tokens, as evidence
_SHOWN = 5  # in a message

#: Finds what in the second model does not go with the first.
Compare = Callable[[ModelFacts, ModelFacts], Iterator[Finding]]


def some(items: Sequence[object]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(map(str, items[:_SHOWN]))
    return f"{shown} and {len(items) - _SHOWN} more" if len(items) > _SHOWN else shown


def excerpt(differing: Mapping[str, Any]) -> dict[str, Any]:
    """As many of the differences as a message holds."""
    return {key: differing[key] for key in list(differing)[:_SHOWN]}


def listed(differing: Mapping[str, Any]) -> str:
    """Differences in words.

    Args:
        differing: per key the first model's value and the other's.
    """
    return "; ".join(f"{key}: {_value(a)} against {_value(b)}" for key, (a, b) in differing.items())


def _value(value: object) -> str:
    return "none" if value is None else str(value)
