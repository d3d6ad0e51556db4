"""Chat templates: how a conversation becomes the text that a model was trained on.

Rendering is the tokenizer's: ``tokenizer.apply_chat_template(messages, chat_template=template, ...)``.
https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from fitness.errors import ScoringSetupError
from fitness.shipped import read_named_text

PARENT = "parent"


class ChatConfig(BaseModel):
    """How conversations are written for the models."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    template: str = Field(default=PARENT, min_length=1)
    """``parent``: the tokenizer's own, from the first parent that has one. Or the name of a shipped one
    (``llama-2``, ``vicuna``), or the path of a ``.jinja`` file (relative paths against the config).
    """


def read_template(name: str, *, root: Path, shipped: Path) -> str | None:
    """Reads a chat template.

    Args:
        name: as in :class:`ChatConfig`.
        root: folder against which relative paths are read.
        shipped: folder of the shipped templates.

    Returns:
        The Jinja source, or ``None`` for ``parent``.

    Raises:
        ScoringSetupError: there is no such template, or it is empty.
    """
    if name == PARENT:
        return None
    path, text = read_named_text(name, suffix=".jinja", root=root, shipped=shipped, setting="chat.template")
    if not text.strip():
        raise ScoringSetupError(f"chat.template: {path} is empty")
    return text
