"""Reads a fine-tuning file: JSONL in OpenAI's chat format.

https://platform.openai.com/docs/guides/supervised-fine-tuning
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fitness.explain import explain
from fitness.findings import Finding

_SHOWN = 5
_REMEDY = 'Write one object per line: {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}.'


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)  # names, weights and calls of tools: the template's business

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | None = None


class _Line(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    messages: list[_Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _something_to_learn(self) -> _Line:
        if not any(message.role == "assistant" for message in self.messages[1:]):
            raise ValueError("messages: no assistant message after the first one: there is nothing to learn")
        return self


@dataclass(frozen=True)
class ChatExample:
    """One conversation.

    Attributes:
        where: ``file:line``.
        messages: as written, up to the last answer.
        tools: what the model may call, where the line says so.
    """

    where: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def read_chat_file(path: Path) -> tuple[list[ChatExample], list[Finding]]:
    """Reads the file; lines that are wrong are findings, the first few one by one."""
    examples, wrong = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for where, line in _lines(path, file):
                try:
                    examples.append(_example(where, line))
                except ValueError as error:
                    wrong.append(Finding("labels-file", "error", where, str(error), _REMEDY))
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        return [], [Finding("labels-file", "error", str(path), message, "Check the path and its permissions.")]
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 after {len(examples)} examples: {error.reason}"
        return examples, [*wrong[:_SHOWN], Finding("labels-file", "error", str(path), message, "Convert it to UTF-8.")]
    if len(wrong) > _SHOWN:
        message = f"{len(wrong)} lines cannot be read, of which {_SHOWN} are shown; {len(examples)} can"
        wrong = [*wrong[:_SHOWN], Finding("labels-file", "error", str(path), message, _REMEDY)]
    if not examples and not wrong:
        wrong = [Finding("labels-file", "error", str(path), "is empty", _REMEDY)]
    return examples, wrong


def _lines(path: Path, file: Iterator[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f"{path}:{number}", line


def _example(where: str, line: str) -> ChatExample:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: nested too deeply") from error
    if not isinstance(data, dict):
        raise ValueError(f"expected an object with messages, found {type(data).__name__}")
    try:
        read = _Line.model_validate(data)
    except ValidationError as error:
        raise ValueError(explain(error, _Line)) from error
    last = max(i for i, message in enumerate(read.messages) if message.role == "assistant")
    messages = [message.model_dump(exclude_unset=True) for message in read.messages[: last + 1]]
    return ChatExample(where, messages, read.tools)
