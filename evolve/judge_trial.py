"""Trying a judge without a run. What is reported is plain data: the JSON of ``evolve judge``."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from evolve.config import RunConfig
from evolve.errors import ConfigError
from evolve.judging import Judging, check_judges, judging
from evolve.resources import configs_dir
from fitness.explain import suggestion
from fitness.judge import Judge
from fitness.judge_config import JudgeConfig
from fitness.judges import read_rivals
from fitness.prompts import Message, Prompt, load_prompts
from fitness.responses import Response
from fitness.rubric import Rubric
from fitness.scorer import Scoring, check_scoring
from fitness.scores import Unscored, Verdict
from fitness.spending import Spent


@dataclass(frozen=True)
class Setup:
    """A judge's settings, checked; nothing is started or asked yet.

    Attributes:
        config: the run config with this judge alone.
        setting: dotted path of its settings.
        scoring: the config's fitness.
        rubric: what it is asked.
        prompts: of the config, by id.
        rivals: by prompt id the fixed answers that it compares with; none: it grades.
    """

    config: RunConfig
    setting: str
    scoring: Scoring
    rubric: Rubric
    prompts: Mapping[str, Prompt]
    rivals: Mapping[str, Response] | None

    def prompt(self, text: str, *, system: str | None = None, references: Sequence[str] = ()) -> Prompt:
        """A prompt of the user's own words; without a system message it gets the config's."""
        system = system or self.config.prompts.system
        messages = ([Message("system", system)] if system else []) + [Message("user", text)]
        name = hashlib.sha256(repr(messages).encode()).hexdigest()[:12]
        return self._comparable(Prompt(name, tuple(messages), tuple(references), "search"))

    def known(self, prompt_id: str, where: str) -> Prompt:
        """A prompt of the config.

        Raises:
            ConfigError: there is none of that id, or no answer to compare with.
        """
        if prompt_id not in self.prompts:
            raise ConfigError(
                f"{where}: no prompt of the config has the id {prompt_id!r}, {suggestion(prompt_id, self.prompts)}"
            )
        return self._comparable(self.prompts[prompt_id])

    def _comparable(self, prompt: Prompt) -> Prompt:
        if self.rivals is not None and prompt.id not in self.rivals:
            raise ConfigError(
                f"{self.setting}.against: no answer to compare with for {prompt.messages[-1].content[:80]!r}; add "
                f"it, ask by prompt id, or grade instead: --set {self.setting}.against=[]"
            )
        return prompt


def set_up(config: RunConfig, *, final: bool) -> Setup:
    """Checks all that needs no judge.

    Args:
        config: a run config; its models are not looked at.
        final: take ``fitness.final_judge``.

    Raises:
        UserMistake: it has no such judge, or its files cannot be used.
    """
    setting = "fitness.final_judge" if final else "fitness.judge"
    chosen = config.fitness.final_judge if final else config.fitness.judge
    if chosen is None:
        raise ConfigError(f"{setting}: missing, so there is no judge to try; add it, with a term {{metric: judge}}.")
    # Under its own name, which stands in messages.
    judges = {"judge": None, "final_judge": None} | {setting.removeprefix("fitness."): chosen}
    alone = config.model_copy(update={"fitness": config.fitness.model_copy(update=judges)})
    prompts = load_prompts(config.prompts, root=config.root)
    scoring = check_scoring(alone.fitness, prompts=prompts, root=config.root, rubrics_dir=configs_dir() / "rubrics")
    assert scoring.rubric is not None
    check_judges(alone)
    against = chosen.against if isinstance(chosen, JudgeConfig) else ()
    rivals = read_rivals(against, prompts=(), root=config.root, setting=setting)
    return Setup(alone, setting, scoring, scoring.rubric, {one.id: one for one in prompts}, rivals)


@dataclass(frozen=True)
class Trial:
    """A judge that is being tried.

    Attributes:
        judge: the judge.
        rubric: what it is asked.
        answers_as: the name under which it answers.
    """

    judge: Judge
    rubric: Rubric
    answers_as: str
    _judging: Judging
    _say: Callable[[str], None]
    _before: Spent

    def verdicts(self, asked: Sequence[tuple[Prompt, Response, int]]) -> list[Verdict | Unscored]:
        """Judges answers side by side: (prompt, answer, how often it was judged before).

        Raises:
            JudgeStopped: the judge cannot or may not be asked any more.
        """
        if len(asked) > 1:
            self._say(f"asking for {len(asked)} verdicts")

        async def every() -> list[Verdict | Unscored]:
            return list(await asyncio.gather(*(self.judge.judge(*one) for one in asked)))

        return self._judging.submit(every()).result()

    def points(self, verdict: Verdict) -> dict[str, float]:
        """By criterion the score on the rubric's scale; where answers were compared a loss is its worst, a win its
        best."""
        low, high = self.rubric.scale.min, self.rubric.scale.max
        if verdict.scale == (low, high):
            return {name: one.score for name, one in verdict.criteria.items()}
        return {name: low + verdict.unit(one.score) * (high - low) for name, one in verdict.criteria.items()}

    def score(self, verdict: Verdict | Unscored) -> float | None:
        """The weighted mean over the criteria, on the rubric's scale; ``None`` where there is none."""
        if isinstance(verdict, Unscored):
            return None
        low, high = self.rubric.scale.min, self.rubric.scale.max
        units = {name: verdict.unit(one.score) for name, one in verdict.criteria.items()}
        return low + self.rubric.value(units) * (high - low)

    def cost(self, judgements: int) -> dict[str, Any]:
        """What was asked of the judge, without the first question.

        Args:
            judgements: how often an answer was judged, from the cache or not.

        Returns:
            The fields of ``Spent`` (``usd``: ``None`` where no price is known), and ``usd_per_answer``: what judging
            an answer once costs where the cache does not know it; ``None`` where nothing was paid.
        """
        cost = self.judge.spent.since(self._before).to_dict()
        asked = cost["calls"] + cost["cached"]
        paid = judgements * cost["calls"] / asked if asked else 0.0
        each = cost["usd"] / paid if paid and cost["usd"] else None
        usd = None if cost["calls"] and not cost["usd"] else cost["usd"]
        return {**cost, "usd": usd, "usd_per_answer": each}

    @property
    def head(self) -> dict[str, Any]:
        """What every report begins with."""
        rubric = self.rubric
        scale = [rubric.scale.min, rubric.scale.max]
        return {"judge": self.answers_as, "rubric": rubric.name, "rubric_version": rubric.version, "scale": scale}


@contextmanager
def trial(setup: Setup, *, say: Callable[[str], None]) -> Iterator[Trial]:
    """Lends a judge, asked once whether it can be asked.

    Args:
        setup: its settings.
        say: tells the user what is being done.

    Raises:
        JudgeStopped: it cannot be asked.
    """
    if setup.rivals is not None:
        say("answers are compared: the worst score stands for a loss against the fixed answer, the best for a win")
    rivals = {} if setup.rivals is None else {setup.setting: setup.rivals}
    with judging(setup.config, setup.scoring, rivals, spending=None, say=say) as stage:
        judge = stage.judges[setup.setting]
        yield Trial(judge, setup.rubric, stage.answers_as[setup.setting], stage, say, judge.spent)


def ask(tried: Trial, prompt: Prompt, answer: str) -> dict[str, Any]:
    """One judgement with its reasons."""
    (verdict,) = tried.verdicts([(prompt, Response(prompt.id, answer, 0, "stop"), 0)])
    found: dict[str, Any] = {**tried.head, "score": tried.score(verdict), "cost": tried.cost(1)}
    if isinstance(verdict, Unscored):
        return {**found, "verdict": None, "spread": None, **verdict.to_dict()}
    return {**found, "verdict": verdict.to_dict(), "spread": verdict.spread, "unscored": None, "reply": None}


def reasons(verdict: Verdict | Unscored) -> dict[str, str]:
    """By criterion what the judge said; empty where it said nothing."""
    return {} if isinstance(verdict, Unscored) else {name: one.reason for name, one in verdict.criteria.items()}
