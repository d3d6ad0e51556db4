"""A chat completion as it stands on the wire, and what of it is used.

OpenAI's form: https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from fitness.expected import Token
from fitness.spending import Usage


@dataclass(frozen=True)
class Reply:
    """What the model said.

    Attributes:
        text: its message; empty where there was none.
        model: the name under which the server says that it answered.
        refusal: what it said in place of a reply.
        cut: whether it ran into the limit of tokens.
        tokens: with their alternatives, where they were asked for and sent.
    """

    text: str
    model: str
    refusal: str | None
    cut: bool
    tokens: tuple[Token, ...]


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Token(BaseModel):
    token: str
    logprob: float
    top_logprobs: tuple[_Alternative, ...] = ()


class _Logprobs(BaseModel):
    content: tuple[_Token, ...] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    prompt_tokens_details: _Details | None = None

    def plain(self) -> Usage:
        """As our own type."""
        cached = (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0
        return Usage(self.prompt_tokens, self.completion_tokens, min(cached, self.prompt_tokens))


class Completion(BaseModel):
    """The few parts of a chat completion that are used; whatever else a server sends is left alone."""

    choices: tuple[_Choice, ...] = Field(min_length=1)
    model: str | None = None
    usage: _Usage | None = None

    @field_validator("usage", mode="wrap")
    @classmethod
    def _usable(cls, value: Any, read: ValidatorFunctionWrapHandler) -> _Usage | None:
        """A good reply must not be lost for its bookkeeping; without it a call counts with its most."""
        try:
            usage: _Usage | None = read(value)
        except ValidationError:
            return None
        return usage

    def reply(self, asked: str) -> Reply:
        """As our own type.

        Args:
            asked: name of the model that was asked, for servers that do not say who answered.
        """
        choice = self.choices[0]
        tokens = (choice.logprobs and choice.logprobs.content) or ()
        return Reply(
            text=choice.message.content or "",
            model=self.model or asked,
            refusal=choice.message.refusal,
            cut=choice.finish_reason == "length",
            tokens=tuple(
                Token(one.token, {one.token: one.logprob} | {a.token: a.logprob for a in one.top_logprobs})
                for one in tokens
            ),
        )
