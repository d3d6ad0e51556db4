"""Who judges: a model behind OpenAI's chat completions API, or a folder of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

ReplyFormat = Literal["json_schema", "json_object", "text"]


class Price(BaseModel):
    """US dollars per million tokens, as the provider's price list gives them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    input: float = Field(ge=0, allow_inf_nan=False)
    """Of what is sent."""
    output: float = Field(ge=0, allow_inf_nan=False)
    """Of the reply."""
    cached_input: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Of what is sent and stands in the provider's own prompt cache; none: as ``input``."""

    def usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """What a call costs.

        Args:
            prompt_tokens: all tokens that were sent.
            completion_tokens: tokens of the reply.
            cached_tokens: those of the tokens sent that the provider had cached.
        """
        cached = self.input if self.cached_input is None else self.cached_input
        sent = (prompt_tokens - cached_tokens) * self.input + cached_tokens * cached
        return (sent + completion_tokens * self.output) / 1e6


class JudgeConfig(BaseModel):
    """A judge behind OpenAI's chat completions API: who it is, how it is asked, and what it may cost."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base_url: str | None = Field(default=None, pattern=r"^https?://")
    """Address of the API, such as ``http://localhost:8000/v1``; none: OpenAI's own."""
    model: str = Field(min_length=1)
    """Name of the judge's model on that server."""
    api_key_env: str | None = Field(default=None, min_length=1)
    """Environment variable that holds the key; none: ``OPENAI_API_KEY`` for OpenAI's own API, and no key for a server
    on this machine or in this network. The key for OpenAI is sent to no other server unless it is named here."""
    calls: Literal["together", "per_criterion"] = "together"
    """One call for all criteria of the rubric, or one for each: dearer, and no criterion colours another."""
    reply_format: Literal["auto"] | ReplyFormat = "auto"
    """How a reply is held to its form: by a strict JSON schema, by JSON mode, or by our parser alone. ``auto`` takes
    the first of these that the endpoint accepts."""
    expected_score: bool = False
    """Score by the mean over the scale, weighted with the probabilities that the judge gave the scores, in place of
    the one that it wrote (G-Eval, Liu et al. 2023, arXiv:2303.16634). Needs an endpoint with log-probabilities, and
    a scale of single digits."""
    samples: int = Field(default=1, ge=1, le=32)
    """Verdicts per answer, averaged; more than one needs a temperature above 0."""
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    """Temperature of the judge; null sends none, for models that refuse the setting."""
    against: tuple[Path, ...] = ()
    """Compare in place of grading: files with a fixed model's answers, ``.jsonl`` with ``prompt_id`` and ``text`` on
    each line, as a run's transcripts are; relative paths against the config. Each answer is shown beside the fixed
    one in both orders; a criterion scores 1 where it is better, 0.5 for a tie, 0 where it is worse."""
    max_reply_tokens: int = Field(default=2000, ge=16)
    """Longest reply, reasoning included; bounds what a call can cost."""
    max_retries: int = Field(default=6, ge=0, le=100)
    """Further tries after a rate limit, a server error or a timeout, with growing pauses, or those the server asks
    for."""
    max_reply_retries: int = Field(default=2, ge=0, le=10)
    """Further tries after a reply outside the protocol; the judge is shown what was wrong."""
    timeout_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Longest wait for one reply."""
    max_concurrency: int = Field(default=8, ge=1, le=1000)
    """Most requests under way at once."""
    requests_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Most requests per minute, retries included; they are spread evenly over the minute."""
    tokens_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Most tokens per minute, sent and received; spread evenly too."""
    price_per_million: Price | None = None
    """Price of a million tokens in US dollars: ``{input: 0.15, output: 0.60}``."""
    max_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Cap on what this judge may cost in one run. A call that could exceed it is not made: the run stops, resumable.
    Needs ``price_per_million``."""
    max_calls: int | None = Field(default=None, ge=1)
    """Cap on the requests of one run, retries included."""
    cache: bool = True
    """Keep verdicts, and never pay twice for the same answer to the same prompt under the same rubric."""

    @property
    def name(self) -> str:
        """Who judges, for people."""
        return self.model

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
    def _fits_together(self) -> JudgeConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples: {self.samples} samples at temperature 0 are one and the same; set temperature above 0"
            )
        if self.max_usd is not None and self.price_per_million is None:
            raise ValueError("max_usd: needs price_per_million, such as {input: 0.15, output: 0.60}, to be watched")
        if self.against and self.expected_score:
            raise ValueError("expected_score: a comparison (against) has no scale; leave one of them out")
        return self


class LocalJudgeConfig(BaseModel):
    """A judge without a server or a key: a model folder, scored by expected value over the grade tokens.

    It writes no reasons, and follows the rubric only as far as its model does: a small one proves nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    folder: Path
    """Hugging Face folder of an instruction-tuned model with a chat template; relative against the config."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """`vllm`, `transformers`, or `auto`: vLLM where it is installed, else transformers."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs that are reserved for it. Empty: 1 where there are GPUs, else 0. A share, such as 0.3, puts it beside a
    worker; then lower ``gpu_memory_utilization`` of both."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, lt=1)
    """Share of its GPU's memory that vLLM may take."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """vLLM's attention cache on a CPU, in GiB."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Longest rubric, conversation and answer, in tokens. Empty: what the model can take, at most 8192."""
    start_timeout_seconds: float = Field(default=900, gt=0)
    """How long its engine may take to start."""
    batch: int = Field(default=32, ge=1)
    """Answers that are graded at once."""
    timeout_seconds: float = Field(default=600, gt=0)
    """Longest wait for one batch; after it the run stops, resumable."""

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and not data.keys().isdisjoint({"model", "base_url"}):
            raise ValueError("give either folder (a local judge) or model and base_url (one on a server), not both")
        return data

    @property
    def name(self) -> str:
        """Who judges, for people."""
        return self.folder.name


def _kind(value: object) -> str:
    local = isinstance(value, LocalJudgeConfig) or (isinstance(value, Mapping) and "folder" in value)
    return "local" if local else "server"


# With a discriminator a wrong value gives one message, not one per member of the union.
AnyJudgeConfig = Annotated[
    Annotated[JudgeConfig, Tag("server")] | Annotated[LocalJudgeConfig, Tag("local")], Discriminator(_kind)
]
