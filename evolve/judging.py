"""The judges of a run put together: cache and purse, a server or a local model, on an event loop of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from evolve.config import RunConfig
from evolve.errors import ConfigError
from evolve.resources import cache_dir
from fitness.judge import Judge
from fitness.judge_config import AnyJudgeConfig, JudgeConfig, LocalJudgeConfig
from fitness.judges import api_key, build_judge, read_rivals
from fitness.local_judge import LocalJudge
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.scorer import Scorer, Scoring
from workers.cluster import least_cpus
from workers.grader import ActorGrader, start_grader
from workers.job import Split
from workers.models import fingerprint, resolve_parents

T = TypeVar("T")
_CLOSING_SECONDS = 20.0


class Judging:
    """Scores answers in the background.

    Attributes:
        scorers: by split.
        judges: by the dotted path of their settings.
        answers_as: by the dotted path of each judge's settings the name under which it answers.
    """

    def __init__(self, scorers: Mapping[Split, Scorer], judges: Mapping[str, Judge]) -> None:
        """Starts the event loop.

        Args:
            scorers: by split.
            judges: by the dotted path of their settings.
        """
        self.scorers = scorers
        self.answers_as: Mapping[str, str] = {}
        self.judges = judges
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scoring", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Does some work on the judges' event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def probe(self) -> None:
        """Asks every judge one question, before anything dearer is begun.

        Raises:
            JudgeStopped: one cannot be asked.
        """
        self.answers_as = {setting: self.submit(judge.probe()).result() for setting, judge in self.judges.items()}

    def close(self) -> None:
        """Lets calls that are under way end, and stops."""
        for judge in self.judges.values():
            self.submit(judge.close()).result(timeout=_CLOSING_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        if not self._thread.is_alive():
            self._loop.close()


def judges_of(config: RunConfig) -> dict[str, AnyJudgeConfig]:
    """The judges that a config names, by the dotted path of their settings."""
    fitness = config.fitness
    named = {"fitness.judge": fitness.judge, "fitness.final_judge": fitness.final_judge}
    return {setting: judge for setting, judge in named.items() if judge is not None}


def gpus_of(judge: AnyJudgeConfig) -> float:
    """GPUs that a judge reserves on this machine or cluster."""
    if isinstance(judge, JudgeConfig):
        return 0.0
    return judge.gpus if judge.gpus is not None else float(torch.cuda.is_available())


def splits_of(setting: str, config: RunConfig) -> tuple[Split, ...]:
    """Whose answers a judge scores, by the dotted path of its settings."""
    if config.fitness.final_judge is None:
        return ("search", "validation")
    return ("validation",) if setting == "fitness.final_judge" else ("search",)


def rivals_of(config: RunConfig, prompts: Mapping[Split, list[Prompt]]) -> dict[str, dict[str, Response]]:
    """By judge the fixed answers that it compares with, each for the prompts of its splits.

    Raises:
        ScoringSetupError: one cannot be read, or lacks a prompt.
    """
    found = {}
    for setting, judge in judges_of(config).items():
        if isinstance(judge, JudgeConfig):
            seen = [one for split in splits_of(setting, config) for one in prompts[split]]
            rivals = read_rivals(judge.against, prompts=seen, root=config.root, setting=setting)
            if rivals is not None:
                found[setting] = rivals
    return found


def check_judges(config: RunConfig) -> dict[str, str]:
    """Keys and folders of the judges; asks nothing.

    Returns:
        By the dotted path of their settings the local judges' identity: folder and fingerprint of the weights.

    Raises:
        UserMistake: a key is missing, or a folder is no model.
    """
    found = {}
    for setting, judge in judges_of(config).items():
        if isinstance(judge, JudgeConfig):
            api_key(judge, setting)
        else:
            folder = _folder(judge, config.root, setting)
            parents = resolve_parents([str(folder)], cache_dir=cache_dir() / "parents", root=config.root)
            found[setting] = f"{folder.name}@{fingerprint(parents.values())[:12]}"
    return found


@contextmanager
def judging(
    config: RunConfig,
    scoring: Scoring,
    rivals: Mapping[str, Mapping[str, Response]],
    *,
    spending: Path | None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Judging]:
    """Lends the judges of a config, each asked once whether it can be asked, and frees them afterwards.

    Args:
        config: the run config.
        scoring: its fitness, checked.
        rivals: from :func:`rivals_of`.
        spending: file in which calls are counted; none: in memory.
        say: tells the user what is being done.

    Raises:
        JudgeStopped: one cannot be asked.
        UserMistake: one cannot be built.
    """
    identities = check_judges(config)
    with ExitStack() as stack:
        judges: dict[str, Judge] = {}
        for setting, judge in judges_of(config).items():
            assert scoring.rubric is not None
            if isinstance(judge, LocalJudgeConfig):
                say(f"starting the local judge {judge.name}, which gives no reasons and is as good as its model")
                grader = stack.enter_context(_started(judge, config, setting))
                judges[setting] = LocalJudge(grader, scoring.rubric, name=identities[setting], batch=judge.batch)
            else:
                judges[setting] = build_judge(
                    judge,
                    scoring.rubric,
                    setting=setting,
                    rivals=rivals.get(setting),
                    cache=cache_dir() / "verdicts.db",
                    spending=spending,
                )
        stage = Judging(
            {split: scoring.scorer(_judge_for(split, judges)) for split in ("search", "validation")}, judges
        )
        stack.callback(stage.close)
        if judges:
            say("asking the judge one question")
        stage.probe()
        yield stage


def cautions_of(config: RunConfig) -> list[str]:
    """What a reader of the results should know about the judges."""
    notes = []
    for setting, judge in judges_of(config).items():
        if isinstance(judge, LocalJudgeConfig):
            notes.append(
                f"{setting}: the local judge {judge.name} scores by the expected value over its grade tokens, without "
                "reasons. A small model hardly follows a rubric: compare it with people (evolve judge check)."
            )
    if config.fitness.final_judge is not None:
        notes.append(
            "fitness.final_judge: validation scores are another judge's than search scores, so that the difference "
            "between the two is no measure of optimism."
        )
    return notes


def _judge_for(split: Split, judges: Mapping[str, Judge]) -> Judge | None:
    first = judges.get("fitness.judge")
    return judges.get("fitness.final_judge", first) if split == "validation" else first


def _folder(judge: LocalJudgeConfig, root: Path, setting: str) -> Path:
    folder = root / judge.folder.expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{setting}.folder: {folder} is no model folder (it has no config.json).")
    return folder


@contextmanager
def _started(judge: LocalJudgeConfig, config: RunConfig, setting: str) -> Iterator[ActorGrader]:
    grader = start_grader(
        _folder(judge, config.root, setting),
        engine=judge.engine,
        gpus=gpus_of(judge),
        cpus=config.workers.cpus_per_worker or 1.0,
        gpu_memory_utilization=judge.gpu_memory_utilization,
        kv_cache_gib=judge.kv_cache_gib,
        max_model_len=judge.max_model_len,
        start_timeout_seconds=judge.start_timeout_seconds,
        timeout_seconds=judge.timeout_seconds,
        ray_address=config.workers.ray_address,
        cluster_cpus=least_cpus(config.workers.count or 1, config.workers.cpus_per_worker),
    )
    try:
        yield grader
    finally:
        grader.close()
