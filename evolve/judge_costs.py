"""What judging a run will take, at most, and what it has taken: calls, tokens, dollars."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from evolve.judging import judges_of, splits_of
from fitness.judge_config import JudgeConfig
from fitness.judge_protocol import comparison, grading
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.rubric import Rubric
from fitness.spending import Spent
from workers.job import Split

if TYPE_CHECKING:
    from evolve.prepare import Prepared

# Rough, and rather too high: UTF-8 bytes per token of English and Japanese text, and tokens of a reason and a score.
_BYTES_PER_TOKEN = 3
_REPLY_TOKENS_PER_CRITERION = 60
_TELLING_CALLS = 8


@dataclass(frozen=True)
class JudgeEstimate:
    """What a judge will be asked if every answer is new to it, is as long as it may be, and is judged at once.

    Attributes:
        setting: dotted path of the judge's settings.
        judge: its model or folder.
        answers: how many it judges.
        calls: requests, without retries; 0 for a local judge.
        prompt_tokens: about so many are sent.
        completion_tokens: about so many come back.
        usd: about so many US dollars; ``None`` where no price is known.
        max_usd: the cap; ``None``: none.
        max_calls: the cap; ``None``: none.
        seconds: about so long all of it takes; ``None`` where nobody has measured it.
    """

    setting: str
    judge: str
    answers: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    max_usd: float | None
    max_calls: int | None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def measured(self, spent: Spent, seconds: float, answers: int) -> JudgeEstimate:
        """Reckoned anew from what some answers took; as it is where too few of them were asked about to tell.

        Args:
            spent: on these answers; the cache may have known most of them.
            seconds: wall seconds of judging them.
            answers: how many there were.
        """
        if not self.calls:  # a local judge keeps no cache
            return replace(self, seconds=seconds * self.answers / answers if answers else None)
        if spent.calls < _TELLING_CALLS:
            return self
        times = self.calls / spent.calls
        return replace(
            self,
            prompt_tokens=round(times * spent.prompt_tokens),
            completion_tokens=round(times * spent.completion_tokens),
            usd=None if self.usd is None else times * spent.usd,
            seconds=times * seconds,
        )

    @property
    def caution(self) -> str | None:
        """Said where a cap will be met before the run ends."""
        if self.max_calls is not None and self.calls > self.max_calls:
            return f"{self.setting}.max_calls: about {self.calls} calls are needed and {self.max_calls} allowed."
        if self.max_usd is not None and self.usd is not None and self.usd > self.max_usd:
            return f"{self.setting}.max_usd: about ${self.usd:.2f} are needed and ${self.max_usd:g} allowed."
        return None

    def __str__(self) -> str:
        """One line for people."""
        if not self.calls:
            return f"{self.answers} answers to the local judge {self.judge}, without calls"
        caps = [f"${self.max_usd:g}"] if self.max_usd is not None else []
        caps += [f"{self.max_calls} calls"] if self.max_calls is not None else []
        return (
            f"{self.calls} calls to {self.judge}, about {_millions(self.prompt_tokens)} + "
            f"{_millions(self.completion_tokens)} tokens, "
            + (f"about ${self.usd:.2f}" if self.usd is not None else "cost unknown (set price_per_million)")
            + (f"; never above {' or '.join(caps)}" if caps else "; without a cap")
        )


def answers_of(prepared: Prepared) -> dict[Split, int]:
    """How many answers are given in the whole run, by split."""
    plan, config = prepared.plan, prepared.config
    of_mean = 0 if plan.remainder else 1  # without a remainder the mean answers the search prompts at the end
    searched = plan.search_evaluations + plan.baselines // 2 + of_mean
    validated = plan.baselines // 2 + plan.finalists - of_mean
    return {
        "search": searched * config.search.repeats * len(prepared.prompts["search"]),
        "validation": validated * config.finalist_repeats * len(prepared.prompts["validation"]),
    }


def estimates(prepared: Prepared) -> list[JudgeEstimate]:
    """What each judge of a run will be asked at most."""
    rubric = prepared.scoring.rubric
    answers = answers_of(prepared)
    found = []
    for setting, judge in judges_of(prepared.config).items():
        assert rubric is not None
        splits = splits_of(setting, prepared.config)
        many = sum(answers[split] for split in splits)
        if not isinstance(judge, JudgeConfig):
            found.append(JudgeEstimate(setting, judge.name, many, 0, 0, 0, None, None, None))
            continue
        calls = sent = received = 0
        for split in splits:
            prompts = prepared.prompts[split]
            times = answers[split] // len(prompts) * judge.samples
            for bytes_sent, criteria in _calls(rubric, prompts, judge, prepared.generation.max_new_tokens):
                calls += times
                sent += times * bytes_sent // _BYTES_PER_TOKEN
                received += times * min(judge.max_reply_tokens, criteria * _REPLY_TOKENS_PER_CRITERION)
        price = judge.price_per_million
        usd = None if price is None else price.usd(sent, received)
        estimate = JudgeEstimate(setting, judge.name, many, calls, sent, received, usd, judge.max_usd, judge.max_calls)
        found.append(estimate)
    return found


def _calls(rubric: Rubric, prompts: Sequence[Prompt], judge: JudgeConfig, max_new_tokens: int) -> list[tuple[int, int]]:
    """(bytes sent, criteria) of every call that one set of answers to the prompts needs."""
    parts = [rubric.only(one) for one in rubric.criteria] if judge.calls == "per_criterion" else [rubric]
    longest = "x" * (_BYTES_PER_TOKEN * max_new_tokens)
    calls = []
    for prompt in prompts:
        answer = Response(prompt.id, longest, max_new_tokens, "stop")
        for part in parts:
            questions = [grading(part, prompt, answer)]
            if judge.against:
                questions = [comparison(part, prompt, answer, answer, first=first) for first in (True, False)]
            calls += [(_bytes(one.messages) + _bytes(one.schema), len(part.criteria)) for one in questions]
    return calls


def _bytes(data: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> int:
    return len(json.dumps(data, ensure_ascii=False).encode())


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:.0f}k"
