"""Distances, angles and signs of task vectors, from inner products that are summed block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Similarity:
    """The models in one group of layers, or over all. Lists and matrices are in the order of the models' names.

    Attributes:
        label: ``layers 0-7``, ``before the layers``, ``after the layers``, ``all``.
        values: how many numbers were compared.
        size: length of each task vector, in lengths of the base's weights.
        apart: distance between each two models, in the same unit; of a fine-tune to its base 0.001 to 0.1 is usual,
            and of two models that were trained apart 1.4.
        kinship: cosine of each model's weights and the base's.
        cosine: of each two task vectors; ``None`` where one of them is zero.
        same_sign: share of equal signs among the values that both change; ``None`` where there are none.
        changed: share of values that differ from the base's.
    """

    label: str
    values: int
    size: tuple[float, ...]
    apart: Matrix
    kinship: tuple[float, ...]
    cosine: Matrix
    same_sign: Matrix
    changed: tuple[float, ...]


@dataclass
class Sums:
    """Sums over the values of a group, float64.

    Attributes:
        products: (1 + k, 1 + k) inner products of the origin and the task vectors.
        apart: (k, k) squared distances; taken by themselves, for products of near vectors cancel.
        agreement: (k, k) equal signs less unequal ones.
        both_changed: (k, k) values that both task vectors change.
        values: how many there were.
        total: how many they stand for.
    """

    products: torch.Tensor
    apart: torch.Tensor
    agreement: torch.Tensor
    both_changed: torch.Tensor
    values: int = 0
    total: float = 0.0

    @classmethod
    def zero(cls, models: int) -> Sums:
        """Nothing summed yet.

        Args:
            models: how many, the origin included: 1 + k.
        """
        shapes = (models, models - 1, models - 1, models - 1)
        return cls(*(torch.zeros(size, size, dtype=torch.float64) for size in shapes))

    def add(self, block: torch.Tensor, weight: float = 1.0) -> None:
        """Adds a block.

        Args:
            block: (1 + k, values) float32, the origin first; it is written to.
            weight: how many values each of them stands for, where they are a sample.
        """
        vectors = block[1:]
        vectors -= block[:1]
        signs = vectors.sign()
        # A block has at most 2^20 values, which float32 counts exactly.
        self.products += weight * (block @ block.T).double()
        if len(vectors) > 1:
            rows, columns = torch.triu_indices(len(vectors), len(vectors), 1)
            squares = weight * torch.pdist(vectors).double() ** 2
            self.apart[rows, columns] += squares
            self.apart[columns, rows] += squares
        self.agreement += weight * (signs @ signs.T).double()
        signs.abs_()
        self.both_changed += weight * (signs @ signs.T).double()
        self.values += block.shape[1]
        self.total += weight * block.shape[1]

    def include(self, other: Sums) -> None:
        """Adds another group's sums."""
        self.products += other.products
        self.apart += other.apart
        self.agreement += other.agreement
        self.both_changed += other.both_changed
        self.values += other.values
        self.total += other.total


def together(parts: Sequence[Sums]) -> Sums:
    """The sums over several groups."""
    whole = Sums.zero(len(parts[0].products))
    for part in parts:
        whole.include(part)
    return whole


def similarity(label: str, sums: Sums) -> Similarity:
    """What the sums of a group say."""
    products = sums.products
    unit = math.sqrt(float(products[0, 0])) or 1.0
    squares = products.diagonal()[1:]
    sizes = squares.sqrt()
    lengths = (products[0, 0] + 2 * products[0, 1:] + squares).clamp(min=1e-30).sqrt()
    kinship = (products[0, 0] + products[0, 1:]) / (unit * lengths)
    cosine = products[1:, 1:] / (sizes[:, None] * sizes[None, :])
    return Similarity(
        label,
        sums.values,
        tuple((sizes / unit).tolist()),
        _rows(sums.apart.sqrt() / unit),
        tuple(kinship.clamp(-1, 1).tolist()),
        _rows(cosine.clamp(-1, 1)),
        _rows((sums.agreement / sums.both_changed + 1) / 2),
        tuple((sums.both_changed.diagonal() / sums.total).tolist()),
    )


def without_base(one: Similarity) -> Similarity:
    """Without what means nothing where a model stands in for the base."""
    nothing = tuple((None,) * len(one.size) for _ in one.size)
    return replace(one, cosine=nothing, same_sign=nothing)


def _rows(matrix: torch.Tensor) -> Matrix:
    """Plain numbers, with ``None`` where there is none."""
    return tuple(tuple(None if math.isnan(one) else one for one in row) for row in matrix.tolist())
