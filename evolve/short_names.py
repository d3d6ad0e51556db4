"""Models are named by their folders; people want to read the end of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath


def short_names(models: Sequence[str]) -> tuple[str, ...]:
    """The last parts of the paths, with as many parent folders as it takes to tell them apart."""
    for depth in range(1, 8):
        names = tuple("/".join(PurePath(m).parts[-depth:]) for m in models)
        if len(set(names)) == len(names):
            return names
    return tuple(models)


def shortened(text: str, names: Mapping[str, str]) -> str:
    """The text with the short names in place of the long ones.

    Args:
        text: for people.
        names: short names by long ones, of models that are named by absolute folders.
    """
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, names[name])
    return text
