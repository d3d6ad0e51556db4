"""Reads the same tensor of several models side by side, some rows at a time, in float32.

Weights are memory-mapped and a block is a few million values, so that a 70B model takes no more memory than a small
one. For big models a share of the blocks can be drawn: a task vector's length and angles are means over millions of
values, and a few blocks of every tensor tell them to a percent or two.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from workers.checkpoint import Checkpoint

BLOCK_VALUES = 2**20
_SAMPLED_BLOCKS, _SAMPLED_VALUES = 64, 2**10  # of a sampled tensor: so many blocks, not smaller than this


@dataclass(frozen=True)
class Rows:
    """What is compared of one tensor.

    Attributes:
        name: of the tensor.
        shape: of the part that all models have: the first rows where only the number of rows differs.
        blocks: first row and the row after the last, of each block to be read.
    """

    name: str
    shape: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]

    @property
    def values(self) -> int:
        """Number of values in the blocks."""
        return sum(end - start for start, end in self.blocks) * math.prod(self.shape[1:])

    @property
    def weight(self) -> float:
        """How many values each of them stands for."""
        return math.prod(self.shape) / self.values


def shared_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The part that all have: equal shapes, or matrices of unequal height (vocabularies with tokens added)."""
    first = shapes[0]
    if any(len(shape) != len(first) or shape[1:] != first[1:] for shape in shapes):
        return None
    if len({shape[:1] for shape in shapes}) > 1 and len(first) != 2:
        return None
    return (min(shape[0] for shape in shapes), *first[1:]) if first else first


def plan_rows(name: str, shape: tuple[int, ...], share: float, *, seed: int) -> Rows:
    """Which rows are read.

    Args:
        name: of the tensor.
        shape: what all models have of it.
        share: of the blocks, in (0, 1]; at least one block is read.
        seed: of the draw, which depends on the tensor's name too.
    """
    height = shape[0] if shape else 1
    width = math.prod(shape[1:])
    values = BLOCK_VALUES
    if share < 1:
        values = min(values, max(_SAMPLED_VALUES, height * width // _SAMPLED_BLOCKS))
    rows = max(1, values // max(1, width))
    blocks = [(start, min(start + rows, height)) for start in range(0, height, rows)]
    count = max(1, round(share * len(blocks)))
    if count < len(blocks):
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn = torch.randperm(len(blocks), generator=generator)[:count].tolist()
        blocks = [blocks[index] for index in sorted(drawn)]
    return Rows(name, shape, tuple(blocks))


def read_blocks(checkpoints: Sequence[Checkpoint], tensors: Sequence[Rows]) -> Iterator[tuple[Rows, torch.Tensor]]:
    """The blocks, tensor by tensor.

    Returns:
        The tensor, and (number of models, at most ``BLOCK_VALUES``) float32 on the CPU.

    Raises:
        SafetensorError: a file is damaged.
        OSError: a file cannot be read.
    """
    with ExitStack() as stack:
        files: dict[Path, Any] = {}

        def opened(checkpoint: Checkpoint, name: str) -> Any:
            path = checkpoint.folder / checkpoint.tensors[name].file
            if path not in files:
                files[path] = stack.enter_context(safe_open(path, framework="pt"))
            return files[path]

        for rows in tensors:
            if not rows.shape:
                scalars = [opened(one, rows.name).get_tensor(rows.name).float().reshape(1) for one in checkpoints]
                yield rows, torch.stack(scalars)
                continue
            slices = [opened(one, rows.name).get_slice(rows.name) for one in checkpoints]
            for start, end in rows.blocks:
                block = torch.stack([one[start:end].to(torch.float32).reshape(-1) for one in slices])
                yield from ((rows, part) for part in block.split(BLOCK_VALUES, dim=1))


def float_tensors(checkpoints: Sequence[Checkpoint]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The tensors that all models store as floats, with the shape that they share; and the names of the others."""
    shared: dict[str, tuple[int, ...]] = {}
    left_out: list[str] = []
    for name in dict.fromkeys(name for one in checkpoints for name in one.tensors):
        shape = None
        if all(name in one.tensors and "float" in one.tensors[name].dtype for one in checkpoints):
            shape = shared_shape([one.tensors[name].shape for one in checkpoints])
        if shape is None or 0 in shape:
            left_out.append(name)
        else:
            shared[name] = shape
    return shared, left_out
