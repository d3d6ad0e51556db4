from __future__ import annotations

import io
import json

from rich.console import Console

from evolve.labels_report import labels_report
from workers.label_masks import LabelledExample, Labels


def labels(tokens: tuple[str, ...], *, end_kept: bool) -> Labels:
    end = len(tokens) - 1
    ordinary = (True,) * end + (end_kept,)
    answer = tuple(place > 1 for place in range(len(tokens)))
    kept = {"language-modelling": ordinary, "assistant-only": answer}
    example = LabelledExample("data.jsonl:7", tokens, tuple(range(len(tokens))), kept, (end,), end, tokens[-1])
    return Labels("model", "data.jsonl", (example,), 1, "</s>", False, None, ("</s>",), False)  # type: ignore[arg-type]


def shown(what: Labels) -> str:
    console = Console(width=3000, file=io.StringIO(), record=True)
    console.print(labels_report(what))
    return console.export_text()


def test_marks_say_without_colours_what_is_learnt() -> None:
    text = shown(labels(("<|user|>", "hi", "[bold]", "a\n", "</s>"), end_kept=False))
    assert "[<|user|>hi[bold]a↵\n]</s>✗" in text
    assert "<|user|>hi[[bold]a↵\n]</s>✓" in text
    assert "data.jsonl:7" in text
    assert "0%" in text


def test_a_long_example_is_shown_from_both_ends() -> None:
    text = shown(labels((*(f"{i} " for i in range(1000)), "</s>"), end_kept=True))
    assert "... 701 tokens ..." in text
    assert "</s>✓" in text
    assert "500 " not in text


def test_the_plain_data_is_json() -> None:
    data = json.loads(json.dumps(labels(("a", "b", "c"), end_kept=True).to_dict()))
    assert data["survival"] == {"language-modelling": 1.0, "assistant-only": 1.0}
    assert data["example"]["tokens"] == ["a", "b", "c"]
