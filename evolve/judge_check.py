"""A judge beside people: agreement, agreement with itself, and what it gives for length. Plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evolve.judge_trial import Setup, Trial, reasons
from fitness.agreement import agreement, histogram, length_preference, raters_alpha, retest
from fitness.labels import Labelled
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.scores import Unscored, Verdict

Column = dict[int, float]  # by the place of an answer


def questions(setup: Setup, labelled: Sequence[Labelled]) -> list[Prompt]:
    """The prompt of each labelled answer.

    Raises:
        ConfigError: the config has no such prompt.
    """
    return [
        setup.known(one.prompt_id, one.where)
        if one.prompt_id is not None
        else setup.prompt(one.prompt or "", system=one.system, references=one.references)
        for one in labelled
    ]


def check(tried: Trial, prompts: Sequence[Prompt], labelled: Sequence[Labelled], *, repeats: int) -> dict[str, Any]:
    """Compares a judge with people.

    Args:
        tried: the judge.
        prompts: from :func:`questions`.
        labelled: answers with their labels.
        repeats: how often each answer is judged; above 1 tells how far the judge agrees with itself.
    """
    pairs = list(zip(prompts, labelled, strict=True))
    asked = [(prompt, Response(prompt.id, one.answer, 0, one.finish)) for prompt, one in pairs]
    verdicts = tried.verdicts([(*pair, time) for time in range(repeats) for pair in asked])
    first = verdicts[: len(asked)]
    judge = _columns(tried, first)
    people: dict[str, Column] = {
        name: {i: _mean(one.labels[name]) for i, one in enumerate(labelled) if name in one.labels} for name in judge
    }
    named = {name: column for name, column in people.items() if column}
    low, high = tried.rubric.scale.min, tried.rubric.scale.max
    return {
        "kind": "check",
        **tried.head,
        "answers": len(labelled),
        "judged": len(judge["score"]),
        "unscored": len(labelled) - len(judge["score"]),
        "unscored_reasons": dict(Counter(one.reason for one in first if isinstance(one, Unscored)).most_common()),
        "agreement": {
            name: asdict(agreement(*_both(judge[name], column)))
            for name, column in named.items()
            if judge[name].keys() & column.keys()
        },
        "raters_alpha": {
            name: raters_alpha([one.labels[name] for one in labelled if name in one.labels]) for name in named
        },
        "retest": _retest(tried, verdicts, len(asked)) if repeats > 1 else None,
        "histogram": {name: histogram(list(column.values()), low, high) for name, column in judge.items()},
        "length": _length(judge["score"], people["score"], labelled),
        "cost": tried.cost(len(verdicts)),
        "items": [
            {
                "prompt": prompt.messages[-1].content,
                "answer": one.answer,
                "human": {name: column[i] for name, column in named.items() if i in column},
                "judge": {name: column[i] for name, column in judge.items() if i in column},
                "reasons": reasons(first[i]),
                "chars": len(one.answer),
                "unscored": _why(first[i]),
            }
            for i, (prompt, one) in enumerate(pairs)
        ],
    }


def _columns(tried: Trial, verdicts: Sequence[Verdict | Unscored]) -> dict[str, Column]:
    """The judge's scores of each answer that it scored: ``score`` for the whole, and by criterion."""
    scored = {i: one for i, one in enumerate(verdicts) if isinstance(one, Verdict)}
    wholes = {i: tried.score(one) for i, one in scored.items()}
    columns = {"score": {i: whole for i, whole in wholes.items() if whole is not None}}
    for criterion in tried.rubric.criteria:
        columns[criterion.name] = {i: tried.points(one)[criterion.name] for i, one in scored.items()}
    return columns


def _retest(tried: Trial, verdicts: Sequence[Verdict | Unscored], answers: int) -> dict[str, Any] | None:
    """How far the judge agrees with itself over the answers that it scored every time."""
    again = [[tried.score(one) for one in verdicts[index::answers]] for index in range(answers)]
    complete = [[score for score in scores if score is not None] for scores in again if None not in scores]
    found = retest(complete)
    return None if found is None else asdict(found)


def _length(judge: Column, people: Column, labelled: Sequence[Labelled]) -> dict[str, Any]:
    """What the judge gives for length, and what it gives beyond what people give."""
    plain = length_preference(list(judge.values()), [len(labelled[i].answer) for i in judge])
    both = sorted(judge.keys() & people.keys())
    chars = [len(labelled[i].answer) for i in both]
    beyond = length_preference([judge[i] for i in both], chars, [people[i] for i in both])
    return {**asdict(plain), "against_people": beyond.per_doubling}


def _both(one: Column, other: Column) -> tuple[list[float], list[float]]:
    places = sorted(one.keys() & other.keys())
    return [one[i] for i in places], [other[i] for i in places]


def _why(verdict: Verdict | Unscored) -> str | None:
    return verdict.reason if isinstance(verdict, Unscored) else None


def _mean(labels: Mapping[str, float]) -> float:
    return sum(labels.values()) / len(labels)
