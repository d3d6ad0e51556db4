"""What an engine answered to one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Response:
    """One answer.

    Attributes:
        prompt_id: the ``Prompt.id`` that was answered.
        text: the answer without special tokens and without the stop string.
        tokens: number of tokens generated, the end-of-text token included.
        finish: ``stop`` where the model ended by itself (end-of-text or a stop string),
            ``length`` where it ran into ``max_new_tokens``.
    """

    prompt_id: str
    text: str
    tokens: int
    finish: Finish
