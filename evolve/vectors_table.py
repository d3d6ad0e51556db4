"""How the parents moved from their base, per group of layers, for people."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from rich.box import SIMPLE
from rich.table import Table

from workers.similarity import Similarity
from workers.task_vectors import TaskVectors


def vectors_table(found: TaskVectors, names: Mapping[str, str]) -> Table:
    """A row per group: each task vector's length, and for each two parents the cosine and the share of equal signs.

    Args:
        found: the comparison; without a base there are distances in place of cosines.
        names: short names of models, by long ones.
    """
    short = [names.get(one, one) for one in found.names]
    table = Table(title=_title(found, names), title_justify="left", box=SIMPLE)
    table.add_column("layers")
    if found.base is not None:
        for name in short:
            table.add_column(name, justify="right")
    for a, b in combinations(short, 2):
        table.add_column(f"{a} ~ {b}", justify="right")
    for group in (*found.groups, *([found.total] if found.total is not None else [])):
        table.add_row(group.label, *_cells(group, with_base=found.base is not None))
    return table


def _title(found: TaskVectors, names: Mapping[str, str]) -> str:
    sampled = "" if found.share >= 1 else f" ({found.share:.1%} of the weights read)"
    if found.base is None:
        return f"Distance between the parents, in lengths of the first{sampled}"
    base = names.get(found.base, found.base)
    return f"Task vectors: length, in lengths of {base}; for two, cosine and share of equal signs{sampled}"


def _cells(group: Similarity, *, with_base: bool) -> list[str]:
    pairs = list(combinations(range(len(group.size)), 2))
    if not with_base:
        return [_number(group.apart[a][b], ".3g") for a, b in pairs]
    sizes = [f"{size:.3g}" for size in group.size]
    return sizes + [f"{_number(group.cosine[a][b], '+.2f')}, {_number(group.same_sign[a][b], '.0%')}" for a, b in pairs]


def _number(value: float | None, spelling: str) -> str:
    return "-" if value is None else format(value, spelling)
