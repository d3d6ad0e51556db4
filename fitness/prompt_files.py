"""Reads files of prompts: JSONL or a YAML list, every complaint with file and line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    field_validator,
    model_validator,
)

from fitness.errors import PromptError
from fitness.explain import explain


def _whole(text: str) -> str:
    # JSON can write half of a surrogate pair ("\ud800"), which no file and no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text


def _number_as_text(value: object) -> object:
    return str(value) if type(value) is int else value


def _one_as_several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_whole)]
SomeText = Annotated[Text, AfterValidator(_not_blank)]


class Turn(BaseModel):
    """One message as it stands in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: SomeText


class _Written(BaseModel):
    """One prompt as it stands in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[SomeText | None, BeforeValidator(_number_as_text)] = None
    prompt: SomeText | None = None
    messages: tuple[Turn, ...] | None = None
    reference: Annotated[tuple[SomeText, ...] | None, BeforeValidator(_one_as_several)] = None
    split: Literal["search", "validation"] | None = None
    category: Text | None = None

    @model_validator(mode="after")
    def _one_conversation(self) -> _Written:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError('needs either "prompt" or "messages"')
        if self.messages is None:
            return self
        if not self.messages or self.messages[-1].role != "user":
            raise ValueError("messages: a conversation must end with a user message")
        if any(turn.role == "system" for turn in self.messages[1:]):
            raise ValueError("messages: a system message can only come first")
        return self

    @field_validator("reference")
    @classmethod
    def _some_reference(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value == ():
            raise ValueError("is empty; leave it out where no right answer is known")
        return value


@dataclass(frozen=True)
class Entry:
    """One prompt of a file, checked, not yet in a split.

    Attributes:
        where: ``file:line``.
        id: as written, or the first 12 hex digits of the SHA-256 of the conversation.
        id_given: whether it was written.
    """

    where: str
    id: str
    id_given: bool
    turns: tuple[Turn, ...]
    references: tuple[str, ...]
    split: Literal["search", "validation"] | None
    category: str | None


def read_entries(path: Path, *, setting: str) -> list[Entry]:
    """Reads one file.

    Args:
        path: a ``.jsonl``, ``.yaml`` or ``.yml`` file in UTF-8.
        setting: dotted path of the setting that named the file, for messages.

    Raises:
        PromptError: it is missing, of another kind, or a line is malformed.
    """
    readers = {".jsonl": _jsonl, ".yaml": _yaml, ".yml": _yaml}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise PromptError(f"{setting}: {path} is neither .jsonl nor .yaml")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: is not UTF-8 at byte {error.start}; convert it to UTF-8") from error
    except OSError as error:
        raise PromptError(f"{setting}: cannot read {path}: {error.strerror}") from error
    return [_entry(f"{path}:{line}", data) for line, data in reader(path, text)]


def _entry(where: str, data: object) -> Entry:
    if not isinstance(data, Mapping):
        raise PromptError(f'{where}: expected an object such as {{"prompt": "..."}}, found {_kind(data)}')
    try:
        written = _Written.model_validate(data)
    except ValidationError as error:
        raise PromptError(f"{where}: {explain(error, _Written)}") from error
    turns = written.messages or (Turn(role="user", content=written.prompt or ""),)
    entry_id = written.id or _content_id(turns)
    references = written.reference or ()
    return Entry(where, entry_id, written.id is not None, turns, references, written.split, written.category)


def _content_id(turns: tuple[Turn, ...]) -> str:
    # The conversation alone, so that correcting a reference moves no prompt to the other split.
    content = json.dumps([[turn.role, turn.content] for turn in turns], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, object]]:
    # Not splitlines(), which also splits at U+2028 and its like inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise PromptError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{path}:{number}: not JSON that can be read: {error}") from error
        yield number, data


def _yaml(path: Path, text: str) -> Iterator[tuple[int, object]]:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PromptError(f"{path}:{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise PromptError(f"{path}:1: not YAML: {error}") from error
    if not isinstance(node, yaml.SequenceNode):
        raise PromptError(f'{path}:1: expected a list of prompts, each starting with "- "')
    for item in node.value:
        line = item.start_mark.line + 1
        try:
            data: Any = loader.construct_object(item, deep=True)
        except Exception as error:
            # PyYAML lets any exception of a constructor through: `!!int ""` gives an IndexError.
            raise PromptError(f"{path}:{line}: not a value that YAML can make: {error}") from error
        yield line, data


def _kind(data: object) -> str:
    names = {str: "a text", list: "a list", int: "a number", float: "a number", type(None): "nothing"}
    return names.get(type(data), type(data).__name__)
