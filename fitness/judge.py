"""A judge: grades answers by one rubric, and never says more than it was told.

Whatever goes wrong, an answer is either judged by replies that kept to the protocol or
:class:`fitness.scores.Unscored`; there is no default score.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fitness.endpoint import Endpoint, NoReply
from fitness.errors import JudgeStopped
from fitness.expected import NoDistribution, expected_scores
from fitness.judge_config import ReplyFormat
from fitness.judge_protocol import (
    PROBE,
    PROBE_ANSWERS,
    Messages,
    ProtocolError,
    Question,
    comparison,
    correction,
    grading,
)
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.rubric import Rubric
from fitness.scores import CriterionScore, Unscored, Verdict
from fitness.spending import Spent
from fitness.verdict_cache import VerdictCache, key_of

_LONGEST_REPLY_CHARS = 4_000  # of a reply that is kept with an unscored answer
_CLOSING_SECONDS = 8.0  # for calls that are paid for already


class Judge(Protocol):
    """Whoever can grade answers by a rubric."""

    @property
    def rubric(self) -> Rubric:
        """What is asked of an answer."""
        ...

    @property
    def spent(self) -> Spent:
        """What it was asked so far."""
        ...

    @property
    def form(self) -> ReplyFormat | None:
        """How its replies are held to their form; ``None`` where it writes none."""
        ...

    async def judge(self, prompt: Prompt, response: Response, again: int = 0) -> Verdict | Unscored:
        """Grades one answer.

        Args:
            prompt: what was asked.
            response: what was answered.
            again: above 0 the same answer is judged anew, past what is known of it.

        Raises:
            JudgeStopped: nothing can be asked any more.
        """
        ...

    async def probe(self) -> str:
        """Asks one question to see whether the judge can be asked at all, and gives the name it answers under.

        Raises:
            JudgeStopped: it cannot; the message says what to mend.
        """
        ...

    async def close(self) -> None:
        """Frees what it holds."""
        ...


@dataclass(frozen=True)
class Sample:
    """One verdict of a judge.

    Attributes:
        model: the name under which it answered.
        scores: by criterion.
    """

    model: str
    scores: Mapping[str, CriterionScore]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the inverse of :meth:`from_dict`."""
        scores = {name: [one.reason, one.score] for name, one in self.scores.items()}
        return {"model": self.model, "scores": scores}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sample:
        """Plain data back into the object."""
        return cls(data["model"], {name: CriterionScore(*one) for name, one in data["scores"].items()})


class LlmJudge:
    """Grades answers by asking a model on a server.

    It belongs to the event loop that first uses it, because its connections do; close it there.

    Args:
        endpoint: where it is asked.
        rubric: what is asked, in its final wording.
        samples: verdicts per answer.
        per_criterion: one call for each criterion.
        expected_score: score by the mean over the scale.
        max_reply_retries: further tries after a reply outside the protocol.
        max_concurrency: most questions under way, each until its verdict is kept: a kill loses no more than these.
        cache: verdicts of all runs; none: every answer is asked about.
        rivals: by prompt id the fixed answers to compare with; none: answers are graded.
        setting: dotted path of the judge's settings, for messages.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        rubric: Rubric,
        *,
        samples: int,
        per_criterion: bool,
        expected_score: bool,
        max_reply_retries: int,
        max_concurrency: int,
        cache: VerdictCache | None,
        rivals: Mapping[str, Response] | None,
        setting: str,
    ) -> None:
        self.rubric = rubric
        self._endpoint = endpoint
        self._samples = samples
        self._parts = [rubric.only(one) for one in rubric.criteria] if per_criterion else [rubric]
        self._expected = expected_score
        self._max_reply_retries = max_reply_retries
        self._places = asyncio.Semaphore(max_concurrency)
        self._cache = cache
        self._rivals = rivals
        self._setting = setting
        self._version = rubric.version
        self._answers_as: str | None = None
        self._asking: dict[str, asyncio.Task[Sample | Unscored]] = {}

    @property
    def spent(self) -> Spent:
        """What it was asked so far, by earlier processes of the run too."""
        return self._endpoint.purse.spent

    @property
    def form(self) -> ReplyFormat:
        """See :attr:`Judge.form`."""
        return self._endpoint.form

    async def judge(self, prompt: Prompt, response: Response, again: int = 0) -> Verdict | Unscored:
        """The mean of the samples that could be had, unscored where none could; see :meth:`Judge.judge`."""
        indices = range(again * self._samples, (again + 1) * self._samples)
        asked = await asyncio.gather(*(self._one(prompt, response, index) for index in indices))
        found = [samples for samples in asked if not isinstance(samples, Unscored)]
        if not found:
            return next(one for one in asked if isinstance(one, Unscored))
        scale = (0.0, 1.0) if self._rivals is not None else (self.rubric.scale.min, self.rubric.scale.max)
        scores = tuple(sample.scores for samples in found for sample in samples)
        return Verdict(self.rubric.name, self._version, found[0][0].model, scale, scores)

    async def probe(self) -> str:
        """Asks about a made-up answer, past the cache; see :meth:`Judge.probe`."""
        answer, rival = PROBE_ANSWERS
        if self._rivals is None:
            question = grading(self._parts[0], PROBE, answer)
        else:
            question = comparison(self._parts[0], PROBE, answer, rival, first=True)
        why = f"{self._setting}: a first question to {self._endpoint.where} failed: "
        try:
            result = await self._verdict(question)
        except NoReply as error:
            raise JudgeStopped(f"{why}{error.reason}. {error.remedy}") from error
        if isinstance(result, Unscored):
            said = f" It said: {result.reply[:300]!r}." if result.reply else ""
            raise JudgeStopped(
                f"{why}{result.reason}.{said} Take another model, a larger max_reply_tokens, or a simpler rubric."
            )
        self._answers_as = result.model
        return result.model

    async def close(self) -> None:
        """Asks nothing new, waits a little for what is under way and paid for, and closes the connections."""
        self._endpoint.stop()
        if self._asking:
            _, late = await asyncio.wait(self._asking.values(), timeout=_CLOSING_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._endpoint.close()
        self._endpoint.purse.close()
        if self._cache is not None:
            self._cache.close()

    async def _one(self, prompt: Prompt, response: Response, index: int) -> list[Sample] | Unscored:
        """One verdict; of a comparison two, one for each order."""
        rivals = self._rivals
        if rivals is None:
            orders = [[grading(part, prompt, response) for part in self._parts]]
        else:
            rival = rivals[prompt.id]
            orders = [
                [comparison(part, prompt, response, rival, first=first) for part in self._parts]
                for first in (True, False)
            ]
        samples = []
        for parts in await asyncio.gather(
            *(asyncio.gather(*(self._known_or_asked(one, index) for one in questions)) for questions in orders)
        ):
            scores: dict[str, CriterionScore] = {}
            model = self._endpoint.model
            for part in parts:
                if isinstance(part, Unscored):
                    return part
                scores |= part.scores
                model = part.model
            samples.append(Sample(model, {one.name: scores[one.name] for one in self.rubric.criteria}))
        return samples

    async def _known_or_asked(self, question: Question, index: int) -> Sample | Unscored:
        """From the cache, from whoever is asking the very same just now, or from the judge."""
        # The messages hold every word of the rubric, the prompt and the answer.
        key = key_of([*self._endpoint.identity, self._expected, question.messages, index])
        if key not in self._asking:
            task = asyncio.create_task(self._known_or_paid(key, question))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        else:
            self._endpoint.purse.cached()
        # Whoever gives up waiting must not take the verdict from the others.
        return await asyncio.shield(self._asking[key])

    def _asked(self, key: str, done: asyncio.Task[Sample | Unscored]) -> None:
        del self._asking[key]
        if not done.cancelled():
            done.exception()  # whoever waited for it has it; nobody may be left

    async def _known_or_paid(self, key: str, question: Question) -> Sample | Unscored:
        known = None if self._cache is None else await self._cache.get(key)
        # A name such as gpt-4o-mini moves on to other weights; its old verdicts are those of another judge.
        if known is not None and self._answers_as in (None, known["model"]):
            self._endpoint.purse.cached()
            return Sample.from_dict(known)
        async with self._places:
            result = await self._ask(question)
            if self._cache is not None and isinstance(result, Sample):
                await self._cache.put(key, result.to_dict())
        return result

    async def _ask(self, question: Question) -> Sample | Unscored:
        try:
            return await self._verdict(question)
        except NoReply as error:
            return Unscored(error.reason, error.reply)

    async def _verdict(self, question: Question) -> Sample | Unscored:
        """Asks until the judge keeps to the protocol; raises NoReply where it does not answer."""
        messages: Messages = question.messages
        for _ in range(1 + self._max_reply_retries):
            reply = await self._endpoint.ask(messages, question.schema)
            if reply.refusal:
                return Unscored("the judge refused", reply.refusal[:_LONGEST_REPLY_CHARS])
            try:
                scores = question.read(reply.text)
                if self._expected:
                    scores = expected_scores(scores, reply.tokens, question.scale)
                return Sample(reply.model, scores)
            except NoDistribution as error:
                return Unscored(f"{self._setting}.expected_score: {error}", reply.text[:_LONGEST_REPLY_CHARS])
            except ProtocolError as error:
                complaint = f"{error}" + ("; the reply was cut off, be briefer" if reply.cut else "")
            messages = [*question.messages, *correction(reply.text, complaint)]
        return Unscored(
            f"the judge broke the protocol {1 + self._max_reply_retries} times, the last time: {complaint}",
            reply.text[:_LONGEST_REPLY_CHARS],
        )
