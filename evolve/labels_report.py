"""One fine-tuning example as coloured tokens with its labels, and what becomes of the end-of-text labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from workers.label_findings import BROKEN, WORRYING
from workers.label_masks import COLLATORS, Collator, LabelledExample, Labels, survival

_EDGE = 150
"""Tokens shown of each end of a long example."""

_KEPT, _MASKED, _TAUGHT, _LOST = "green", "dim", "bold green reverse", "bold red reverse"


def labels_report(labels: Labels, *, shown: int = 0) -> RenderableType:
    """The shares per collator, and one example under each.

    Args:
        labels: what was found.
        shown: which example to show.
    """
    shares = Table("collator", "end-of-text labels", "tokens with a label")
    for name, share in survival(labels.examples).items():
        style = "green" if share >= WORRYING else "yellow" if share >= BROKEN else "bold red"
        kept = sum(sum(one.kept[name]) for one in labels.examples)
        tokens = sum(len(one.ids) for one in labels.examples)
        shares.add_row(name, Text(f"{share:.0%}", style), f"{kept / tokens:.0%}")
    example = labels.examples[shown]
    assumed = " (none named; set as most scripts do)" if labels.pad_assumed else ""
    head = (
        f"{labels.data} with the tokenizer of {labels.model}\n{len(labels.examples)} of {labels.total} examples; "
        f"padding {labels.pad_token}{assumed}; generation stops at {', '.join(labels.end_tokens)}"
    )
    legend = Text.assemble(
        f"{example.where}: ",
        ("[learnt]", _KEPT),
        " ",
        ("masked", _MASKED),
        ", end of text ",
        ("✓", _TAUGHT),
        " learnt ",
        ("✗", _LOST),
        " masked",
    )
    tokens_shown = [Group(Text(f"{name}:"), _tokens(example, name)) for name in COLLATORS]
    return Group(Text(head), shares, legend, *tokens_shown)


def _tokens(example: LabelledExample, collator: Collator) -> Text:
    text = Text()
    last = len(example.ids) - 1
    for part in (range(last + 1),) if last < 2 * _EDGE else (range(_EDGE), range(last + 1 - _EDGE, last + 1)):
        if part.start:
            text.append(f" ... {part.start - _EDGE} tokens ... ")
        for span in _spans(example, collator, part):
            text.append_text(span)
    return text


def _spans(example: LabelledExample, collator: Collator, places: range) -> Iterator[Text]:
    """Brackets and marks say without colours what the colours say; every other token is underlined."""
    kept, ends = example.kept[collator], frozenset(example.ends)
    for (learnt, is_end), group in groupby(places, key=lambda place: (kept[place], place in ends)):
        if is_end:
            mark, style = ("✓", _TAUGHT) if learnt else ("✗", _LOST)
            yield from (Text(_visible(example.tokens[place]) + mark, style) for place in group)
            continue
        style = _KEPT if learnt else _MASKED
        span = Text("[" if learnt else "", style)
        for place in group:
            span.append(_visible(example.tokens[place]), "underline" if place % 2 else "")
        yield span.append("]" if learnt else "")


def _visible(token: str) -> str:
    return token.replace("\n", "↵\n")
