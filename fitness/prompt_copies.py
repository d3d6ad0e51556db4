"""Prompts that are all but the same, in one split or across the two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, get_args

from fitness.findings import Finding
from fitness.near_texts import THRESHOLD, fold, near_pairs
from fitness.prompts import Prompt, Split

Pair = tuple[Prompt, Prompt, float]

_WHERE = "prompts.files"
_SPLITS: tuple[Split, ...] = get_args(Split)
_LISTED = 50
_EXCERPT_CHARS = 60


def copy_findings(prompts: Sequence[Prompt]) -> list[Finding]:
    """Leaks from the search into validation, and copies within a split.

    Args:
        prompts: of both splits.
    """
    across, within = _copies(prompts)
    return [_leak_finding(across), _copy_finding(within)]


def said(prompt: Prompt) -> str:
    """The conversation without its system message."""
    return "\n".join(one.content for one in prompt.messages if one.role != "system")


def _copies(prompts: Sequence[Prompt]) -> tuple[list[Pair], list[Pair]]:
    """Pairs of copies across the splits and within one; under another system message it is another prompt."""
    groups: defaultdict[tuple[str, str], dict[Split, list[Prompt]]] = defaultdict(lambda: {one: [] for one in _SPLITS})
    for prompt in prompts:
        system = fold(" ".join(one.content for one in prompt.messages if one.role == "system"))
        groups[system, fold(said(prompt))][prompt.split].append(prompt)
    keys, members = list(groups), list(groups.values())
    across: list[Pair] = []
    within: list[Pair] = []
    for group in members:
        for same in group.values():
            within += [(same[0], other, 1.0) for other in same[1:]]
        across += [(seen, unseen, 1.0) for seen in group["search"][:1] for unseen in group["validation"]]
    for a, b, similarity in near_pairs([text for _, text in keys]):
        if keys[a][0] != keys[b][0]:
            continue
        for one, other in ((members[a], members[b]), (members[b], members[a])):
            across += [(seen, unseen, similarity) for seen in one["search"][:1] for unseen in other["validation"]]
        for split in _SPLITS:
            one, other = members[a], members[b]
            within += [(first, copy, similarity) for first in one[split][:1] for copy in other[split][:1]]
    return across, within


def _leak_finding(pairs: Sequence[Pair]) -> Finding:
    if not pairs:
        return Finding("prompts-leak", "ok", _WHERE, "no validation prompt is all but a search prompt")
    count = len({unseen.id for _, unseen, _ in pairs})
    return Finding(
        "prompts-leak",
        "warning",
        _WHERE,
        f"{count} validation prompts are all but prompts of the search, which will have been fitted to them: "
        f"{_quoted(pairs)}",
        'give such pairs one "split", or drop one of each',
        {"validation_prompts": count, "threshold": THRESHOLD, "pairs": _as_data(pairs)},
    )


def _copy_finding(pairs: Sequence[Pair]) -> Finding:
    if not pairs:
        return Finding("duplicate-prompts", "ok", _WHERE, "no two prompts of a split are all but the same")
    count = len({copy.id for _, copy, _ in pairs})
    return Finding(
        "duplicate-prompts",
        "warning",
        _WHERE,
        f"{count} prompts are all but copies of others in their split; they count twice in every mean, and make "
        f"it look surer than it is: {_quoted(pairs)}",
        "drop one of each pair",
        {"copies": count, "threshold": THRESHOLD, "pairs": _as_data(pairs)},
    )


def _quoted(pairs: Sequence[Pair]) -> str:
    a, b, _ = max(pairs, key=lambda pair: pair[2])
    return f"{a.id} ({_excerpt(a)}) and {b.id} ({_excerpt(b)})" + (" for one" if len(pairs) > 1 else "")


def _excerpt(prompt: Prompt) -> str:
    text = " ".join(prompt.messages[-1].content.split())
    return text if len(text) <= _EXCERPT_CHARS else text[: _EXCERPT_CHARS - 1] + "…"


def _as_data(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    nearest = sorted(pairs, key=lambda pair: -pair[2])[:_LISTED]
    return [
        {"ids": [a.id, b.id], "similarity": round(similarity, 3), "exact": a.messages == b.messages}
        for a, b, similarity in nearest
    ]
