"""A judge behind OpenAI's chat completions API, at OpenAI or any server that speaks it.

One request per answer for all criteria of the rubric. Whatever goes wrong, an answer is either judged by a reply
that kept to the protocol or :class:`fitness.scores.Unscored`; there is no default score.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fitness.errors import ScoringSetupError
from fitness.judge_protocol import ProtocolError, judge_messages, read_reply, reply_schema
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.rubric import Rubric
from fitness.scores import CriterionScore, Unscored, Verdict

__all__ = ["CriterionScore", "Judge", "JudgeConfig", "Unscored", "Verdict", "build_judge"]

_OPENAI_URL = "https://api.openai.com/v1"

# The longest Retry-After that the client obeys; it gives up on longer ones.
_LONGEST_PAUSE_SECONDS = 120.0

_LONGEST_REASON_CHARS = 300


class JudgeConfig(BaseModel):
    """Who judges, and how it is reached."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base_url: str | None = Field(default=None, pattern=r"^https?://")
    """Address of the API, such as ``http://localhost:8000/v1``; none: OpenAI's own."""
    model: str = Field(min_length=1)
    """Name of the judge's model on that server."""
    api_key_env: str = Field(default="OPENAI_API_KEY", min_length=1)
    """Environment variable that holds the key. A server on this machine or in this network needs none."""
    samples: int = Field(default=1, ge=1, le=32)
    """Verdicts per answer, averaged; more than one needs a temperature above 0."""
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    """Temperature of the judge; null sends none, for models that refuse the setting."""
    max_retries: int = Field(default=4, ge=0, le=100)
    """Further tries after a rate limit, a server error or a timeout, with growing pauses."""
    max_reply_retries: int = Field(default=2, ge=0, le=10)
    """Further tries after a reply outside the protocol; the judge is shown what was wrong."""
    timeout_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Longest wait for one reply."""
    max_concurrency: int = Field(default=8, ge=1, le=1000)
    """Most requests under way at once."""

    @field_validator("base_url")
    @classmethod
    def _names_a_server(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parts = urlsplit(value)
                host, _ = parts.hostname, parts.port  # a malformed port shows only when it is read
            except ValueError as error:
                raise ValueError(f"is not an address such as http://localhost:8000/v1: {error}") from error
            if not host or any(character.isspace() for character in value):
                raise ValueError("is not an address such as http://localhost:8000/v1")
        return value

    @model_validator(mode="after")
    def _samples_differ(self) -> JudgeConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples: {self.samples} samples at temperature 0 are one and the same; set temperature above 0"
            )
        return self


class Judge:
    """Grades answers by one rubric.

    It belongs to the event loop that first uses it, because its connections do; close it there.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        rubric: Rubric,
        *,
        model: str,
        samples: int,
        temperature: float | None,
        max_reply_retries: int,
        max_concurrency: int,
        deadline_seconds: float,
    ) -> None:
        """Holds what the calls need.

        Args:
            client: brings its own retries and timeout per try.
            deadline_seconds: end of one request with all its tries. The client's timeout is a pause between
                bytes, which a server that trickles never reaches.
        """
        self.rubric = rubric
        self._client = client
        self._model = model
        self._samples = samples
        self._max_reply_retries = max_reply_retries
        self._deadline_seconds = deadline_seconds
        self._slots = asyncio.Semaphore(max_concurrency)
        self._settings: dict[str, Any] = {"response_format": reply_schema(rubric)}
        if temperature is not None:
            self._settings["temperature"] = temperature

    async def judge(self, prompt: Prompt, response: Response) -> Verdict | Unscored:
        """Grades one answer; the mean of the samples that could be had, unscored where none could."""
        samples = await asyncio.gather(*(self._sample(prompt, response) for _ in range(self._samples)))
        judged = [one for one in samples if not isinstance(one, Unscored)]
        if not judged:
            return next(one for one in samples if isinstance(one, Unscored))
        model = judged[0][0]
        return Verdict(self.rubric.name, self.rubric.version, model, tuple(scores for _, scores in judged))

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _sample(self, prompt: Prompt, response: Response) -> tuple[str, Mapping[str, CriterionScore]] | Unscored:
        """One verdict, with the name under which the server says that the judge answered."""
        task = judge_messages(self.rubric, prompt, response)
        messages = task
        complaint, reply = "", None
        for _ in range(1 + self._max_reply_retries):
            try:
                async with self._slots, asyncio.timeout(self._deadline_seconds):
                    # Raw, because the client's own reading checks nothing: a server that only resembles
                    # OpenAI's would give objects without the attributes that their types promise.
                    raw = await self._client.chat.completions.with_raw_response.create(
                        model=self._model, messages=cast(Any, messages), **self._settings
                    )
                completion = _Completion.model_validate_json(raw.text)
            except (openai.OpenAIError, TimeoutError) as error:
                return Unscored(_reason(error), reply)
            except ValidationError:
                return Unscored("the judge's server answered outside the API", raw.text)
            message = completion.choices[0].message
            if message.refusal:
                return Unscored("the judge refused", message.refusal)
            reply = message.content or ""
            try:
                return completion.model or self._model, read_reply(self.rubric, reply)
            except ProtocolError as error:
                complaint = str(error)
            messages = [*task, *_correction(reply, complaint)]
        tries = 1 + self._max_reply_retries
        return Unscored(f"the judge broke the protocol {tries} times, the last time: {complaint}", reply)


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    """The few parts of a chat completion that are used; whatever else a server sends is left alone."""

    choices: tuple[_Choice, ...] = Field(min_length=1)
    model: str | None = None


def _correction(reply: str, complaint: str) -> list[dict[str, str]]:
    request = f"That reply did not keep to the protocol: {complaint}. Send the corrected JSON object only."
    previous = [{"role": "assistant", "content": reply}] if reply else []
    return [*previous, {"role": "user", "content": request}]


def _reason(error: openai.OpenAIError | TimeoutError) -> str:
    if isinstance(error, openai.APIStatusError):
        said = error.body.get("message") if isinstance(error.body, Mapping) else error.message
        # A gateway's error page can be long.
        return f"the judge's server answered {error.status_code}: {str(said)[:_LONGEST_REASON_CHARS]}"
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return "the judge's server did not answer in time"
    if isinstance(error, openai.APIConnectionError):
        return f"the judge's server could not be reached: {error.__cause__ or error}"
    return f"the judge's client failed: {error}"


def build_judge(config: JudgeConfig, rubric: Rubric) -> Judge:
    """Builds the judge of a config, with its key from the environment; sends nothing.

    Raises:
        ScoringSetupError: the environment holds no key and the server is not a local one.
    """
    # Named here, or the client would take an address from the environment, where no record shows it.
    base_url = config.base_url or _OPENAI_URL
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        if not _is_local(base_url):
            raise ScoringSetupError(
                f"fitness.judge.api_key_env: the environment variable {config.api_key_env} is not set;"
                f" set it to your key for {base_url}"
            )
        key = "none"
    client = openai.AsyncOpenAI(
        api_key=key,
        base_url=base_url,
        max_retries=config.max_retries,
        timeout=config.timeout_seconds,
    )
    return Judge(
        client,
        rubric,
        model=config.model,
        samples=config.samples,
        temperature=config.temperature,
        max_reply_retries=config.max_reply_retries,
        max_concurrency=config.max_concurrency,
        deadline_seconds=(1 + config.max_retries) * (config.timeout_seconds + _LONGEST_PAUSE_SECONDS),
    )


def _is_local(base_url: str) -> bool:
    """Whether a server is on this machine or in this network, by its address or its bare host name."""
    host = urlsplit(base_url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".localhost", ".internal"))
    return address.is_private or address.is_loopback
