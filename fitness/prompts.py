"""Prompts: conversations to be answered, each in one split.

The search only ever sees the split ``search``; the winner is chosen and reported on ``validation``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fitness.errors import PromptError
from fitness.prompt_files import Entry, read_entries

Split = Literal["search", "validation"]
Role = Literal["system", "user", "assistant"]


class PromptsConfig(BaseModel):
    """Which prompts the models answer, and which of them the search may see."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    files: tuple[Path, ...] = Field(min_length=1)
    """Files of prompts, ``.jsonl`` (one per line) or ``.yaml`` (a list); relative paths against the config.

    A prompt is ``{"prompt": "text"}`` or ``{"messages": [{"role": ..., "content": ...}]}``, optionally
    with ``id``, ``reference`` (text or a list of texts), ``split`` (search or validation), ``category``.
    """
    system: str | None = Field(default=None, min_length=1)
    """System prompt put before every conversation that has none of its own."""
    validation_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the prompts without a ``split`` of their own that goes to validation.

    Each prompt is drawn by a hash of its id and ``seed``, so adding prompts never moves another.
    """
    search_limit: int | None = Field(default=None, ge=1)
    """At most this many search prompts, drawn by hash; none: all of them."""
    validation_limit: int | None = Field(default=None, ge=1)
    """At most this many validation prompts, drawn by hash; none: all of them."""
    seed: int = 0
    """Seed of the split and of the limits."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for its answer.

    Attributes:
        id: unique among the prompts of a run.
        messages: an optional system message first, a user message last.
        references: right answers, any of which will do; empty where none is known.
        split: who may see it.
        category: a label of the user's own, for reports.
    """

    id: str
    messages: tuple[Message, ...]
    references: tuple[str, ...]
    split: Split
    category: str | None = None

    @property
    def reference(self) -> str | None:
        """The first of the references."""
        return self.references[0] if self.references else None


def load_prompts(config: PromptsConfig, *, root: Path) -> tuple[Prompt, ...]:
    """Reads the files of prompts and splits them, in the order of the files.

    Args:
        config: which files, and how to split.
        root: folder against which relative paths are read.

    Raises:
        PromptError: a file is missing or malformed (with file and line), two prompts share an id, one
            conversation is in both splits, or a split is empty.
    """
    entries: list[Entry] = []
    for index, file in enumerate(config.files):
        entries += read_entries(root / file.expanduser(), setting=f"prompts.files[{index}]")
    _refuse_shared_ids(entries)
    prompts = tuple(_prompt(entry, config) for entry in entries)
    _refuse_leaks(entries, prompts)
    limits: tuple[tuple[Split, int | None], ...] = (
        ("search", config.search_limit),
        ("validation", config.validation_limit),
    )
    for split, limit in limits:
        chosen = [prompt for prompt in prompts if prompt.split == split]
        if not chosen:
            raise PromptError(
                f"prompts.files: no {split} prompts among {len(prompts)}; give some of them"
                f' "split": "{split}", or add prompts, or change prompts.validation_share'
                f" (now {config.validation_share:g}) or prompts.seed (now {config.seed})"
            )
        if limit is not None:
            # Its own hash: that of the split is not uniform within a split.
            chosen.sort(key=lambda prompt: _uniform(f"limit:{config.seed}:{prompt.id}"))
            dropped = {prompt.id for prompt in chosen[limit:]}
            prompts = tuple(prompt for prompt in prompts if prompt.id not in dropped)
    return prompts


def _prompt(entry: Entry, config: PromptsConfig) -> Prompt:
    messages = tuple(Message(turn.role, turn.content) for turn in entry.turns)
    if config.system is not None and messages[0].role != "system":
        messages = (Message("system", config.system), *messages)
    split: Split | None = entry.split
    if split is None:
        drawn = _uniform(f"split:{config.seed}:{entry.id}")
        split = "validation" if drawn < config.validation_share else "search"
    return Prompt(entry.id, messages, entry.references, split, entry.category)


def _uniform(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, not on Python's salted ``hash``."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _refuse_shared_ids(entries: Sequence[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.id, entry)
        if other is not entry:
            how = "" if entry.id_given else ' (made from the same conversation; drop one, or give each an "id")'
            raise PromptError(f"{entry.where}: id {entry.id!r} is taken by {other.where}{how}")


def _refuse_leaks(entries: Sequence[Entry], prompts: Sequence[Prompt]) -> None:
    first: dict[tuple[Message, ...], tuple[Entry, Prompt]] = {}
    for entry, prompt in zip(entries, prompts, strict=True):
        other_entry, other = first.setdefault(prompt.messages, (entry, prompt))
        if other.split != prompt.split:
            raise PromptError(
                f"{entry.where}: the conversation of {other_entry.where} again, one of them for search and"
                ' one for validation, which must be unseen by the search; drop one, or give both one "split"'
            )
