"""The project's judge on many answers. Also a program, so that a test can kill it::

python tests/fitness/judge_client.py URL FOLDER COUNT '{"max_concurrency": 8}'

It keeps ``verdicts.db`` and ``spending.db`` in FOLDER and prints the outcomes as one JSON list.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitness.errors import JudgeStopped
from fitness.judge_config import JudgeConfig
from fitness.judges import build_judge
from fitness.prompts import Message, Prompt
from fitness.responses import Response
from fitness.rubric import Rubric
from fitness.scores import Unscored, Verdict

Outcome = Verdict | Unscored | JudgeStopped
ANCHORS = {1: "No.", 7: "Yes."}
RUBRIC = Rubric.model_validate(
    {
        "name": "plain",
        "instructions": "You grade replies.",
        "criteria": [
            {"name": "right", "question": "Is it right?", "anchors": ANCHORS},
            {"name": "short", "question": "Is it short?", "anchors": ANCHORS},
        ],
    }
)
PROMPT = Prompt("p", (Message("user", "空は？"),), ("青",), "search")


def made_up_answers(count: int) -> list[str]:
    return [f"空は青いですわ。{number}" for number in range(count)]


def outcomes(
    url: str,
    answers: Sequence[str],
    folder: Path | None = None,
    rivals: Mapping[str, Response] | None = None,
    probe: bool = False,
    **config: Any,
) -> list[Outcome]:
    """Judges all answers at once; what is wrong with one is its outcome. A run asks ``probe`` before."""

    async def run() -> list[Outcome]:
        judge = build_judge(
            JudgeConfig(base_url=url, model="judge", **config),
            RUBRIC,
            rivals=rivals,
            cache=folder and folder / "verdicts.db",
            spending=folder and folder / "spending.db",
        )
        try:
            if probe:
                await judge.probe()
            asked = (judge.judge(PROMPT, Response("p", answer, 4, "stop")) for answer in answers)
            found = await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await judge.close()
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, JudgeStopped):
                raise one
        return list(found)  # type: ignore[arg-type]

    return asyncio.run(run())


def main() -> None:
    url, folder, count, config = sys.argv[1:]
    found = outcomes(url, made_up_answers(int(count)), Path(folder), **json.loads(config))
    print(json.dumps([{"stopped": str(one)} if isinstance(one, JudgeStopped) else one.to_dict() for one in found]))


if __name__ == "__main__":
    main()
