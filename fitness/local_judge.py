"""A judge without a server or a key: the expected value over the grade tokens of a local model.

For each criterion the model is asked for one whole number of the scale, and the score is ``sum(p_i * i)`` over the
probabilities of the numbers as its next token (G-Eval; Liu et al. 2023, arXiv:2303.16634, equation 1). It is exact
and repeatable, writes no reasons, and follows the rubric only as far as its model does.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fitness.errors import JudgeStopped
from fitness.judge_protocol import PROBE, PROBE_ANSWERS, Messages, grade_alone
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.rubric import Rubric
from fitness.scores import CriterionScore, Unscored, Verdict
from fitness.spending import Spent

Probabilities = list[float]


class Grader(Protocol):
    """A model that is asked for grades."""

    def grade(self, conversations: Sequence[Messages], grades: Sequence[str]) -> Sequence[Probabilities | Unscored]:
        """Blocks until the grades are there.

        Args:
            conversations: each a list of ``{"role": ..., "content": ...}``.
            grades: what the answers may begin with.

        Returns:
            Per conversation the probability of each grade, normalised over the grades; ``Unscored`` where it could
            not be asked.

        Raises:
            JudgeStopped: it cannot be asked any more.
        """
        ...

    def close(self) -> None:
        """Ends it; a call that waits raises ``JudgeStopped``."""
        ...


@dataclass(frozen=True)
class _Asked:
    """An answer that waits: one conversation per criterion, and where the grades are awaited."""

    conversations: list[Messages]
    graded: asyncio.Future[Sequence[Probabilities | Unscored]]


class LocalJudge:
    """Grades answers by one rubric; implements :class:`fitness.judge.Judge`.

    Answers that are judged at the same time are graded together. It belongs to the event loop that uses it.

    Args:
        grader: the model.
        rubric: what is asked.
        name: under which it stands in verdicts; must tell models apart.
        batch: most answers in one call of the grader.
    """

    def __init__(self, grader: Grader, rubric: Rubric, *, name: str, batch: int) -> None:
        self.rubric = rubric
        self.name = name
        self._grader = grader
        self._batch = batch
        self._values = range(rubric.scale.min, rubric.scale.max + 1)
        self._grades = [str(value) for value in self._values]
        self._waiting: deque[_Asked] = deque()
        self._serving: asyncio.Task[None] | None = None

    @property
    def spent(self) -> Spent:
        """Nothing: no call costs anything."""
        return Spent()

    @property
    def form(self) -> None:
        """None: grades are read off its next token."""
        return None

    async def judge(self, prompt: Prompt, response: Response, again: int = 0) -> Verdict | Unscored:  # noqa: ARG002
        """Grades one answer; unscored where one of the criteria could not be graded.

        Raises:
            JudgeStopped: the grader cannot be asked any more.
        """
        criteria = self.rubric.criteria
        asked = [grade_alone(self.rubric.only(one), prompt, response) for one in criteria]
        scores: dict[str, CriterionScore] = {}
        for criterion, shares in zip(criteria, await self._grade(asked), strict=True):
            if isinstance(shares, Unscored):
                return shares
            scores[criterion.name] = self._score(shares)
        scale = (self.rubric.scale.min, self.rubric.scale.max)
        return Verdict(self.rubric.name, self.rubric.version, self.name, scale, (scores,))

    async def probe(self) -> str:
        """Asks about a made-up answer; see :meth:`fitness.judge.Judge.probe`."""
        judged = await self.judge(PROBE, PROBE_ANSWERS[0])
        if isinstance(judged, Unscored):
            raise JudgeStopped(
                f"{judged.reason}. Take a model with a longer context (the judge's folder), or a shorter rubric."
            )
        return self.name

    async def close(self) -> None:
        """Ends the grader; whoever waits for it gets ``JudgeStopped``."""
        await asyncio.to_thread(self._grader.close)
        if self._serving is not None:
            await self._serving

    async def _grade(self, conversations: list[Messages]) -> Sequence[Probabilities | Unscored]:
        asked = _Asked(conversations, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return await asked.graded

    async def _serve(self) -> None:
        """Grades what waits, a batch at a time, until nothing does."""
        await asyncio.sleep(0)  # those that ask together are in one batch
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            batch = [asked for asked in batch if not asked.graded.done()]  # nobody waits for a cancelled one
            if not batch:
                continue
            conversations = [one for asked in batch for one in asked.conversations]
            try:
                found = iter(await asyncio.to_thread(self._grader.grade, conversations, self._grades))
                for asked in batch:
                    shares = [next(found) for _ in asked.conversations]
                    if not asked.graded.done():
                        asked.graded.set_result(shares)
            except Exception as error:  # handed to those who wait
                for asked in batch:
                    if not asked.graded.done():
                        asked.graded.set_exception(error)
        self._serving = None

    def _score(self, shares: Probabilities) -> CriterionScore:
        score = math.fsum(share * value for share, value in zip(shares, self._values, strict=True))
        likeliest = sorted(zip(shares, self._grades, strict=True), reverse=True)[:3]
        listed = ", ".join(f"P({grade})={share:.2f}" for share, grade in likeliest)
        # Rounding may carry the sum past an end of the scale.
        score = min(float(self.rubric.scale.max), max(float(self.rubric.scale.min), score))
        return CriterionScore(f"no reason: expected value over the grade tokens; {listed}", score)
