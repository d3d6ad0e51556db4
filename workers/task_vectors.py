"""How the parents differ from their base and from each other: distances, angles and signs, per group of layers.

A task vector is a fine-tune's weights minus its base's (Ilharco et al. 2023, arXiv:2212.04089). Merges add, trim and
weigh such vectors, which presumes that the base is the ancestor of all: independent fine-tunes of one base move in
nearly orthogonal directions, so that each is nearer to the base than to the others. Signs that disagree are what TIES
resolves by a vote (Yadav et al. 2023, arXiv:2306.01708).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fitness.findings import Finding
from workers.checkpoint import Checkpoint
from workers.errors import ModelError
from workers.models import Architecture
from workers.similarity import Similarity, Sums, similarity, together, without_base
from workers.task_vector_checks import vector_findings
from workers.weight_blocks import float_tensors, plan_rows, read_blocks

_REST = "other"


@dataclass(frozen=True)
class TaskVectors:
    """What the comparison found.

    Attributes:
        names: the models, without the base.
        base: the base's name; ``None`` where none is known: then the first model stands in for ``size``, ``kinship``
            and ``changed``, and there are no cosines and signs.
        groups: per group of layers.
        total: over all groups; ``None`` where nothing could be compared.
        share: of the weights that were read; below 1 they were sampled.
        left_out: tensors that not all models have in one shape.
        seconds: how long it took.
        findings: what is wrong with it.
    """

    names: tuple[str, ...]
    base: str | None
    groups: tuple[Similarity, ...]
    total: Similarity | None
    share: float
    left_out: tuple[str, ...]
    seconds: float
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def layer_groups(architecture: Architecture, groups: int = 4) -> dict[str, tuple[str, ...]]:
    """The tensors in groups of neighbouring layers, with those before and after the layers apart.

    Args:
        architecture: of the models.
        groups: how many groups of layers, fewer where there are fewer layers.
    """
    count = max(1, min(groups, architecture.num_layers))
    bounds = [architecture.num_layers * index // count for index in range(count + 1)]
    found = {"before the layers": architecture.pre}
    for start, end in pairwise(bounds):
        label = f"layers {start}-{end - 1}" if end - start > 1 else f"layer {start}"
        found[label] = tuple(name for layer in architecture.layers[start:end] for name in layer)
    found["after the layers"] = architecture.post
    return {label: names for label, names in found.items() if names}


def compare(
    names: Sequence[str],
    folders: Mapping[str, Path],
    base: str | None,
    groups: Mapping[str, Sequence[str]],
    *,
    max_values: int | None = None,
    seed: int = 0,
) -> TaskVectors:
    """Compares the weights of some models; raises nothing on broken ones, which are findings.

    Args:
        names: the models; the base among them is left out.
        folders: of each model and the base, by name.
        base: the common ancestor, if one is known.
        groups: names of tensors by label, as :func:`layer_groups` gives them; others are put into one more group.
        max_values: at most about so many values are read of each model, drawn evenly over all tensors; none: all.
        seed: of the draw.
    """
    begun = time.monotonic()
    members = tuple(one for one in dict.fromkeys(names) if one != base)
    if not members:
        raise ValueError("there is nothing to compare: no model beside the base")
    origin = members[0] if base is None else base
    order = (origin, *members)
    checkpoints = [Checkpoint(name, folders[name]) for name in order]
    sums: dict[str, Sums] = {}
    problems: dict[tuple[str, str], Finding] = {}
    filled: dict[str, torch.Tensor] = {}
    left_out: list[str] = []
    share = 1.0
    try:
        shapes, left_out = float_tensors(checkpoints)
        total = sum(math.prod(shape) for shape in shapes.values())
        share = 1.0 if max_values is None else min(1.0, max_values / max(1, total))
        group_of = {name: label for label, listed in groups.items() for name in listed}
        tensors = [plan_rows(name, shape, share, seed=seed) for name, shape in shapes.items()]
        share = sum(one.values for one in tensors) / max(1, total)
        for rows, block in read_blocks(checkpoints, tensors):
            label = group_of.get(rows.name, _REST)
            if len(rows.shape) > 1:  # a bias may be zero before it is trained
                filled[rows.name] = filled.get(rows.name, torch.zeros(len(order), dtype=torch.bool)) | block.any(dim=1)
            broken = ~torch.isfinite(block).all(dim=1)
            for index in broken.nonzero().flatten().tolist():
                problems.setdefault((order[index], "weights-finite"), _not_finite(order[index], rows.name))
            if not broken.any():
                sums.setdefault(label, Sums.zero(len(order))).add(block, rows.weight)
    except (ModelError, SafetensorError, OSError) as error:
        sums.clear()  # half of the weights would tell half of the truth
        remedy = "fetch the model again; a download may have been cut"
        problems["", "weights-readable"] = Finding("weights-readable", "error", "weights", str(error), remedy)
    labels = [label for label in (*groups, _REST) if label in sums]
    found = tuple(similarity(label, sums[label]) for label in labels)
    whole = similarity("all", together([sums[label] for label in labels])) if labels else None
    if base is None:
        found = tuple(without_base(one) for one in found)
        whole = whole and without_base(whole)
    findings = [*problems.values(), *_holes(order, filled)]
    if whole is not None:
        findings += vector_findings(members, base, whole, share=share)
    elif not findings:
        message = f"{', '.join(order)} have no tensor in common"
        findings.append(Finding("weights-comparable", "error", "weights", message, "choose models of one family"))
    seconds = time.monotonic() - begun
    return TaskVectors(members, base, found, whole, share, tuple(left_out), seconds, tuple(findings))


def _holes(order: Sequence[str], filled: Mapping[str, torch.Tensor]) -> Iterator[Finding]:
    """Matrices of zeros where other models have values, as a download with holes leaves them."""
    for index, model in enumerate(order):
        if model in order[:index]:
            continue
        holes = [name for name, found in filled.items() if found.any() and not found[index]]
        if holes:
            yield Finding(
                "weights-filled",
                "warning",
                model,
                f"{len(holes)} tensors hold nothing but zeros ({holes[0]} for one), where the other models have values",
                "fetch the model again; a download with holes looks so",
                {"tensors": holes[:50]},
            )


def _not_finite(model: str, tensor: str) -> Finding:
    return Finding(
        "weights-finite",
        "error",
        model,
        f"tensor {tensor} holds NaN or infinity, which every merge of it would too",
        "fetch the model again, or train it again in bfloat16 or float32",
        {"tensor": tensor},
    )
