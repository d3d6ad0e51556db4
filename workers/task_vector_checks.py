"""What the lengths and angles of task vectors say about the choice of parents and base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from fitness.findings import Finding
from workers.similarity import Similarity

NEAR_COSINE = 0.999
NOTHING = 1e-6
FAR_TIMES = 100.0
STRANGER_COSINE = 0.5
_COMMON_COSINE = 0.4  # independent fine-tunes have near 0; a sister in place of the base gives 0.5
_BASE, _MODELS = "genome.base_model", "genome.models"


def vector_findings(names: Sequence[str], base: str | None, total: Similarity, *, share: float) -> list[Finding]:
    """Whether base and parents are what they seem.

    Args:
        names: the models.
        base: their ancestor, if one is known.
        total: the comparison over all layers.
        share: of the weights that were read.
    """
    sampled = "" if share >= 1 else f" (from {share:.1%} of the weights)"
    twins = list(_same(names, total, sampled))
    if base is None:
        strange = list(_strangers_without_base(names, total, sampled))
        return [*twins, *strange] or [_fine("parents-differ", names, total, sampled)]
    zero = {index for index, size in enumerate(total.size) if size < NOTHING}
    strangers = {index for index, cosine in enumerate(total.kinship) if cosine < STRANGER_COSINE}
    found = [*twins, *_unchanged(names, base, zero), *_strangers(names, base, total, strangers, sampled)]
    moved = [index for index in range(len(names)) if index not in zero | strangers]
    pairs = [one for a, b in combinations(moved, 2) for one in _pair(names, base, total, (a, b), sampled)]
    found += pairs
    if len(moved) > 1:
        found += _far(names, total, moved, sampled)
    if not any(one.check == "parents-differ" for one in found):
        found.append(_fine("parents-differ", names, total, sampled))
    if not (strangers or pairs):
        found.append(_fine("base-plausible", names, total, sampled))
    return found


def _same(names: Sequence[str], total: Similarity, sampled: str) -> Iterator[Finding]:
    for a, b in combinations(range(len(names)), 2):
        apart = total.apart[a][b]
        if apart is not None and apart < NOTHING:
            yield Finding(
                "parents-differ",
                "warning",
                _MODELS,
                f"{names[a]} and {names[b]} have the same weights{sampled}: there is nothing between them to search",
                "drop one of them; or was the wrong folder given?",
                {"models": [names[a], names[b]], "apart": apart},
            )


def _unchanged(names: Sequence[str], base: str, zero: set[int]) -> Iterator[Finding]:
    for index in sorted(zero):
        yield Finding(
            "parents-differ",
            "warning",
            _MODELS,
            f"{names[index]} is {base} itself: its task vector is zero, and its weight has no effect",
            "drop it from genome.models; or was the wrong folder given, or an adapter not merged?",
            {"models": [names[index], base]},
        )


def _strangers(
    names: Sequence[str], base: str, total: Similarity, strangers: set[int], sampled: str
) -> Iterator[Finding]:
    if not strangers:
        return
    named = ", ".join(f"{names[index]} ({total.kinship[index]:.2f})" for index in sorted(strangers))
    yield Finding(
        "base-plausible",
        "warning",
        _BASE,
        f"{base} is no ancestor of {named}: cosine of the weights{sampled}, where a fine-tune has 0.9 or more. What "
        "would be merged as a task vector is mostly minus the base",
        "give the model that the parents were fine-tuned from, and choose parents of one ancestor",
        {"kinship": {names[index]: total.kinship[index] for index in sorted(strangers)}},
    )


def _strangers_without_base(names: Sequence[str], total: Similarity, sampled: str) -> Iterator[Finding]:
    # Without a base the first model stands in for it.
    for index in range(1, len(names)):
        if total.kinship[index] < STRANGER_COSINE:
            yield Finding(
                "parents-related",
                "warning",
                _MODELS,
                f"{names[0]} and {names[index]} are no relatives: cosine of their weights "
                f"{total.kinship[index]:.2f}{sampled}, where fine-tunes of one base have 0.9 or more",
                "choose fine-tunes of one base model: the mean of strangers is rubble",
                {"models": [names[0], names[index]], "kinship": total.kinship[index]},
            )


def _pair(names: Sequence[str], base: str, total: Similarity, pair: tuple[int, int], sampled: str) -> Iterator[Finding]:
    a, b = pair
    apart, cosine = total.apart[a][b], total.cosine[a][b]
    if apart is None or cosine is None or apart < NOTHING:
        return
    sizes = total.size[a], total.size[b]
    evidence = {"models": [names[a], names[b]], "size": list(sizes), "apart": apart, "cosine": cosine}
    if cosine > NEAR_COSINE:
        yield Finding(
            "parents-differ",
            "warning",
            _MODELS,
            f"{names[a]} and {names[b]} moved from {base} in one direction (cosine {cosine:.4f}{sampled}): either "
            f"they are all but one model, or {base} is not their nearest common ancestor",
            "drop one of them, or give the model that both were fine-tuned from as genome.base_model",
            evidence,
        )
    elif apart < min(sizes):
        yield Finding(
            "base-plausible",
            "warning",
            _BASE,
            f"{names[a]} and {names[b]} are nearer to each other ({apart:.3g}) than to {base} ({sizes[0]:.3g}, "
            f"{sizes[1]:.3g}; in lengths of the base's weights{sampled}): it is not their nearest common ancestor, and "
            "what they have in common would be counted twice",
            "give the model that both were fine-tuned from (an instruct model, say) as genome.base_model",
            evidence,
        )
    elif cosine > _COMMON_COSINE:
        yield Finding(
            "base-plausible",
            "note",
            _BASE,
            f"{names[a]} and {names[b]} moved from {base} in part alike (cosine {cosine:.2f}{sampled}): like data, or "
            f"one is a fine-tune of the other, or {base} is a sister of theirs and not their ancestor",
            "",
            evidence,
        )


def _far(names: Sequence[str], total: Similarity, moved: Sequence[int], sampled: str) -> Iterator[Finding]:
    small, large = min(moved, key=lambda index: total.size[index]), max(moved, key=lambda index: total.size[index])
    times = total.size[large] / total.size[small]
    if times >= FAR_TIMES:
        yield Finding(
            "parents-differ",
            "warning",
            _MODELS,
            f"{names[large]} is {times:.0f} times as far from the base as {names[small]}{sampled}: with like weights "
            f"the merge is {names[large]}, and nothing of {names[small]} is seen",
            f"check that {names[small]} was fine-tuned at all; else let the search weigh it more (a wider range of "
            "genome.parameters.weight)",
            {"models": [names[small], names[large]], "size": [total.size[small], total.size[large]]},
        )


def _fine(check: str, names: Sequence[str], total: Similarity, sampled: str) -> Finding:
    sizes = ", ".join(f"{name} {size:.3g}" for name, size in zip(names, total.size, strict=True))
    if check == "base-plausible":
        message = f"the parents are nearer to the base than to each other{sampled}; distances from it: {sizes}"
        return Finding(check, "ok", _BASE, message, evidence={"size": list(total.size)})
    return Finding(check, "ok", _MODELS, f"the parents' weights differ{sampled}: {', '.join(names)}")
