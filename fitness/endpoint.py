"""One server that speaks OpenAI's chat completions API: asked within its limits, and as often as it takes.

Every request passes one gate: the rates, then the caps. Our own tries again in place of the client's, because the
client's would pass no gate.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import openai
from pydantic import ValidationError

from fitness.completion import Completion, Reply
from fitness.errors import JudgeRefused, JudgeStopped
from fitness.judge_config import Price, ReplyFormat
from fitness.judge_protocol import Messages
from fitness.pacing import Pacer, asked_pause_seconds, pause_seconds
from fitness.spending import Purse, Usage

_LONGEST_REASON_CHARS = 300
_LONGEST_REPLY_CHARS = 4_000  # of a body outside the API that is kept
_LONGEST_PAUSE_SECONDS = 600.0  # that a server may ask for
# A token has at least a byte, and a message a few tokens around it.
_TOKENS_PER_MESSAGE = 16
# So many questions in a row without a reply, and the server counts as gone.
_MOST_SILENT = 16
_PASSING = frozenset({408, 409, 425, 429})
_FATAL = {
    401: "is the key right?",
    403: "may this key use it?",
    404: "does it exist?",
}


class NoReply(Exception):
    """A question got no reply; the message says why."""

    remedy = "Is the server running, and base_url right?"

    def __init__(self, reason: str, reply: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply


class _Passing(NoReply):
    """Worth another try."""

    def __init__(self, reason: str, reply: str | None = None, *, asked_seconds: float | None = None) -> None:
        super().__init__(reason, reply)
        self.asked_seconds = asked_seconds


class _Misunderstood(NoReply):
    """The endpoint refused what was asked, or how."""

    remedy = "Settings that some judges need: temperature: null, a larger max_reply_tokens, expected_score: false."


@dataclass(frozen=True)
class _Dialect:
    """What an endpoint understands."""

    form: ReplyFormat
    limit: str = "max_completion_tokens"


class Endpoint:
    """Asks one model on one server; belongs to the event loop that first uses it.

    Args:
        client: with its address and key; its own retries must be off.
        model: name of the model there.
        purse: counts the calls, and refuses those above the caps.
        pacer: keeps to the rates.
        price: of a million tokens; none: free.
        form: of the replies; none: what the endpoint accepts.
        temperature: none: not sent.
        max_reply_tokens: longest reply.
        logprobs: ask for the log-probabilities of the likeliest tokens.
        max_retries: further tries.
        timeout_seconds: end of one try.
        setting: dotted path of the judge's settings, for messages.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        model: str,
        purse: Purse,
        pacer: Pacer,
        *,
        price: Price | None,
        form: ReplyFormat | None,
        temperature: float | None,
        max_reply_tokens: int,
        logprobs: bool,
        max_retries: int,
        timeout_seconds: float,
        setting: str,
    ) -> None:
        self.model = model
        self.purse = purse
        self._client = client
        self._pacer = pacer
        self._price = price
        self._forms: tuple[ReplyFormat, ...] = (form,) if form else ("json_schema", "json_object", "text")
        self._dialect = _Dialect(self._forms[0])
        self._understood = False  # whether the dialect has been accepted
        self._max_reply_tokens = max_reply_tokens
        self._max_retries = max_retries
        self._timeout_seconds = timeout_seconds
        self._setting = setting
        self._settings: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
        if logprobs:
            self._settings |= {"logprobs": True, "top_logprobs": 20}
        self._stopped: JudgeStopped | None = None
        self._silent = 0
        self._reply_tokens = min(300.0, max_reply_tokens)  # of a usual reply, for the rate

    @property
    def where(self) -> str:
        """Whom it asks, for people."""
        return f"{self.model} at {self._client.base_url}"

    @property
    def form(self) -> ReplyFormat:
        """How replies are held to their form, as far as is known by now."""
        return self._dialect.form

    @property
    def identity(self) -> tuple[Any, ...]:
        """What else than the messages decides a reply: two servers may have different models of one name."""
        return (str(self._client.base_url), self.model, self._forms, sorted(self._settings.items()))

    async def ask(self, messages: Messages, schema: Mapping[str, Any]) -> Reply:
        """One reply.

        Raises:
            NoReply: it could not be had.
            JudgeStopped: no question can be asked any more.
        """
        for attempt in range(1 + self._max_retries):
            try:
                reply = await self._in_a_dialect(messages, schema)
            except _Passing as error:
                failed = error
                if attempt < self._max_retries:
                    await asyncio.sleep(pause_seconds(attempt, error.asked_seconds))
            else:
                self._silent = 0
                return reply
        self._silent += 1
        if self._silent >= _MOST_SILENT:
            raise self._stop(
                f"{self._setting}: {self._silent} answers in a row got no reply. The last time {failed.reason}."
            )
        raise NoReply(failed.reason, failed.reply)

    def stop(self) -> None:
        """Asks nothing new; what is under way goes on."""
        self._stop("the judge was closed")

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _in_a_dialect(self, messages: Messages, schema: Mapping[str, Any]) -> Reply:
        """Asks in the first dialect that the endpoint accepts."""
        while True:
            dialect = self._dialect
            try:
                reply = await self._once(messages, schema, dialect)
            except _Misunderstood as error:
                if not self._turned(dialect, error.reason):
                    raise
            else:
                self._understood = True
                return reply

    def _turned(self, refused: _Dialect, reason: str) -> bool:
        """Turns to the next dialect, unless another question has done so already."""
        if refused != self._dialect:
            return True
        if self._understood:  # so it was this question that was wrong, too long for the model perhaps
            return False
        if refused.limit == "max_completion_tokens" and refused.limit in reason:
            self._dialect = replace(refused, limit="max_tokens")
            return True
        rest = self._forms[self._forms.index(refused.form) + 1 :]
        self._dialect = replace(refused, form=rest[0] if rest else self._forms[0])
        return bool(rest)

    async def _once(self, messages: Messages, schema: Mapping[str, Any], dialect: _Dialect) -> Reply:
        request = {"messages": messages, **self._settings, dialect.limit: self._max_reply_tokens}
        if dialect.form == "json_schema":
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif dialect.form == "json_object":
            request["response_format"] = {"type": "json_object"}
        sent_bytes = len(json.dumps(request, ensure_ascii=False).encode(errors="replace"))
        likely_tokens = round(sent_bytes / 3 + self._reply_tokens)
        most_tokens = sent_bytes + _TOKENS_PER_MESSAGE * len(messages)
        # What a call without an end may have been billed.
        usage, usd = Usage(), self._usd(Usage(most_tokens, self._max_reply_tokens))
        call = await self._reserve(usd)
        sent = False
        try:
            # Nothing may wait between the pacer and the server, or what waited would leave together.
            await self._pacer.wait(likely_tokens)
            self._refuse_stopped()
            sent = True
            completion = await self._send(request)
            if completion.usage is not None:
                usage = completion.usage.plain()
                usd = self._usd(usage)
                self._pacer.correct(usage.prompt_tokens + usage.completion_tokens - likely_tokens)
                self._reply_tokens += 0.1 * (usage.completion_tokens - self._reply_tokens)
        except openai.APIStatusError as error:
            usd = 0.0
            raise self._meaning(error) from error
        finally:
            await (self.purse.settle(call, usage, usd) if sent else self.purse.withdraw(call))
        return completion.reply(self.model)

    def _refuse_stopped(self) -> None:
        if self._stopped:
            raise self._stopped

    async def _reserve(self, most_usd: float) -> int:
        self._refuse_stopped()
        try:
            return await self.purse.reserve(most_usd)
        except JudgeStopped as error:
            self._stopped = error
            raise

    def _usd(self, usage: Usage) -> float:
        if self._price is None:
            return 0.0
        return self._price.usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    async def _send(self, request: Mapping[str, Any]) -> Completion:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                # Raw, because the client's own reading checks nothing: a server that only resembles OpenAI's would
                # give objects without the attributes that their types promise.
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self.model, **cast(Any, request)
                )
            return Completion.model_validate_json(raw.text)
        except openai.APIStatusError:
            raise
        except (openai.APITimeoutError, TimeoutError) as error:
            raise _Passing("the judge's server did not answer in time") from error
        except openai.APIConnectionError as error:
            raise _Passing(f"the judge's server could not be reached: {error.__cause__ or error}") from error
        except openai.OpenAIError as error:
            raise _Passing(f"the judge's client failed: {error}") from error
        except ValidationError as error:
            text = raw.text[:_LONGEST_REPLY_CHARS]
            raise _Passing("the judge's server answered outside the API", text) from error

    def _meaning(self, error: openai.APIStatusError) -> Exception:
        """What a refusal of the server means for this question and for the next ones."""
        status, said = error.status_code, _said(error)
        code = error.body.get("code") if isinstance(error.body, Mapping) else None
        where = f"(model {self.model!r} at {self._client.base_url})"
        if status == 402 or code == "insufficient_quota":
            return self._stop(f"{self._setting}: {said}; is the account in credit? {where}")
        if status in _FATAL and not (status == 403 and self._understood):  # else it was what this answer says
            self._stopped = self._stopped or JudgeRefused(f"{self._setting}: {said}; {_FATAL[status]} {where}")
            return self._stopped
        if status in (400, 422):
            return _Misunderstood(said)
        if status not in _PASSING and status < 500:
            return NoReply(said)
        pause = asked_pause_seconds(error.response.headers)
        if pause is None:
            return _Passing(said)
        if pause > _LONGEST_PAUSE_SECONDS:
            return self._stop(
                f"{self._setting}: {said}; it asks to be left alone for {pause:.0f} s. Resume after that."
            )
        self._pacer.hold(pause)
        return _Passing(said, asked_seconds=pause)

    def _stop(self, reason: str) -> JudgeStopped:
        self._stopped = self._stopped or JudgeStopped(reason)
        return self._stopped


def _said(error: openai.APIStatusError) -> str:
    said = error.body.get("message") if isinstance(error.body, Mapping) else error.message
    # A gateway's error page can be long.
    return f"the judge's server answered {error.status_code}: {str(said)[:_LONGEST_REASON_CHARS].rstrip('.')}"
