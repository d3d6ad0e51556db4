"""A few answers of every parent, and the time and memory of a typical evaluation, before a night is spent.

One worker is started. First some merges around the start of the search answer all search prompts, which is what the
search will do over and over. Then each parent answers some prompts under the run's own settings and under the presets,
so that an answer that runs on can be told from a setting that cuts it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evolve.prepare import Prepared, make_pool
from fitness.generation import PRESETS, Generation, PresetName
from fitness.prompts import Prompt
from fitness.responses import Response
from workers.engine import WorkersConfig
from workers.errors import WorkersLost
from workers.job import Job, JobFailed, Split, Transcript
from workers.recipe import Recipe

RUN = "the run's settings"
A_MERGE = "a merge around the start of the search"
PRESETS_ASKED: tuple[PresetName, ...] = ("greedy-short", "sampling-long")
_MERGES = 3  # the first of a process is slower than those that follow


@dataclass(frozen=True)
class Asked:
    """What one parent answered under one setting.

    Attributes:
        model: the parent's name, or :data:`A_MERGE`.
        settings: whose settings: the run's, or a preset's.
        generation: the settings.
        prompts: what was asked.
        responses: the answers, one per prompt; empty where it failed.
        seconds: wall seconds of answering.
        failure: why there are no answers.
    """

    model: str
    settings: str
    generation: Generation
    prompts: Sequence[Prompt]
    responses: Sequence[Response]
    seconds: float
    failure: str | None = None

    @property
    def of_run(self) -> bool:
        """Whether it was answered under the run's own settings, so that its scores count."""
        return self.settings == RUN and bool(self.responses)

    @property
    def tokens_per_second(self) -> float:
        """Of all answers together."""
        return sum(one.tokens for one in self.responses) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Probe:
    """What was seen.

    Attributes:
        asked: by parent and setting.
        merged: what a merge around the start of the search answered to the same prompts, under the run's settings.
        start_seconds: until the worker was ready.
        warm_up_seconds: that its first evaluation took longer than those that followed.
        merge_seconds: of a merge around the start of the search, in a worker that has merged before.
        answer_seconds: of all search prompts under the run's settings.
        peak_bytes: largest resident memory of the worker's process.
    """

    asked: Sequence[Asked]
    merged: Asked
    start_seconds: float
    warm_up_seconds: float
    merge_seconds: float
    answer_seconds: float
    peak_bytes: int


def probe(
    prepared: Prepared,
    *,
    prompts: int,
    presets: Sequence[PresetName],
    cpus: float,
    say: Callable[[str], None] = lambda _: None,
) -> Probe:
    """Starts one worker, asks, and closes it.

    Args:
        prepared: the checked config.
        prompts: how many of the search prompts each parent answers under each setting.
        presets: the settings beside the run's own.
        cpus: that each worker of the run will get, and so this one.
        say: tells the user what is being done.

    Raises:
        EngineSetupError: the engine does not start.
        WorkersLost: the worker died, and another too; or nothing could be merged.
    """
    chosen = spread(prepared.prompts["search"], prompts)
    tokens = dict(prepared.tokens["search"])
    few = [(one.id, tokens[one.id]) for one in chosen]
    settings = {RUN: prepared.generation} | {name: _fitting(PRESETS[name], prepared) for name in presets}
    parents = [one for one in prepared.baselines if one.kind == "parent" and one.split == "search"]
    # The pool has two sets of prompts: all that the search asks, and the few of the probe.
    asked: dict[Split, Sequence[tuple[str, list[int]]]] = {"search": prepared.tokens["search"], "validation": few}
    # What the search will do comes first, so that no longer answers raise the process's largest memory before it.
    seed = prepared.generation.seed
    work = [Job(f"merge-{i}", recipe, "search", seed=seed) for i, recipe in enumerate(_typical(prepared))]
    jobs: dict[str, tuple[str, str]] = {}
    for name, generation in settings.items():
        for parent in parents:
            key = f"probe-{len(jobs):03d}"
            jobs[key] = (parent.label, name)
            work.append(Job(key, parent.recipe, "validation", seed=seed, generation=generation))
    say(f"starting one {prepared.spec.engine} worker to ask the parents")
    begun = time.monotonic()
    spec = replace(prepared.spec, max_model_len=_longest(prepared, list(settings.values())))
    workers = _patient(prepared.config.workers, prepared.generation, settings.values(), cpus=cpus)
    with make_pool(workers, spec, asked, prepared.generation, count=1) as pool:
        start_seconds = time.monotonic() - begun
        say(f"{len(parents)} parents answer {len(few)} prompts under {len(settings)} settings")
        results = {result.job.key: result for result in pool.run(work)}
    answers = [asked_of(results[key], model, name, settings[name], chosen) for key, (model, name) in jobs.items()]
    merges = [results[f"merge-{i}"] for i in range(_MERGES)]
    done = [one for one in merges if isinstance(one, Transcript)]
    if not done:
        (failed, *_) = [one for one in merges if isinstance(one, JobFailed)]
        raise WorkersLost(f"no merge around the start of the search could be made: {failed.stage}: {failed.reason}")
    seconds = [sum(one.seconds.values()) for one in done]
    warm = done[1:] or done
    by_prompt = {one.prompt_id: one for one in warm[-1].responses}
    few_of_merge = [by_prompt[one.id] for one in chosen]
    return Probe(
        asked=answers,
        merged=Asked(A_MERGE, RUN, prepared.generation, chosen, few_of_merge, warm[-1].seconds["generate"]),
        start_seconds=start_seconds,
        warm_up_seconds=max(0.0, seconds[0] - float(np.mean(seconds[1:] or seconds))),
        merge_seconds=float(np.mean([one.seconds["merge"] for one in warm])),
        answer_seconds=float(np.mean([one.seconds["generate"] for one in warm])),
        peak_bytes=max(share.peak_bytes for one in done for share in one.shares),
    )


def asked_of(
    result: Transcript | JobFailed, model: str, name: str, generation: Generation, prompts: Sequence[Prompt]
) -> Asked:
    """A worker's result as what a model was asked and answered."""
    if isinstance(result, JobFailed):
        return Asked(model, name, generation, prompts, (), 0.0, f"{result.stage}: {result.reason}")
    return Asked(model, name, generation, prompts, result.responses, result.seconds["generate"])


def _typical(prepared: Prepared) -> list[Recipe]:
    """Merges around the start of the search, all different, so that each is really made."""
    random = np.random.default_rng(prepared.config.seed)
    genome = prepared.genome
    points = np.clip(genome.x0 + 0.1 * random.standard_normal((_MERGES, genome.dimensions)), 0.0, 1.0)
    return [genome.decode(point) for point in points]


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """So many of the prompts, evenly over all."""
    count = min(count, len(prompts))
    return [prompts[index * len(prompts) // count] for index in range(count)]


def _patient(workers: WorkersConfig, run: Generation, settings: Iterable[Generation], *, cpus: float) -> WorkersConfig:
    """The run's settings with its limit of time stretched to the longest answers that are asked for here."""
    limit = workers.evaluation_timeout_seconds
    longest = max(one.max_new_tokens for one in settings) / run.max_new_tokens
    patience = None if limit is None else limit * max(1.0, longest)
    return workers.model_copy(update={"evaluation_timeout_seconds": patience, "cpus_per_worker": cpus})


def _fitting(preset: Generation, prepared: Prepared) -> Generation:
    """The preset with the run's seed and stop texts, cut to what the model has positions for and the config allows."""
    config = prepared.config
    most = min(_positions(prepared), config.workers.max_model_len or _positions(prepared))
    room = most - max(len(ids) for _, ids in prepared.tokens["search"])
    limit = max(1, min(preset.max_new_tokens, room))
    return replace(preset, seed=prepared.generation.seed, stop=prepared.generation.stop, max_new_tokens=limit)


def _longest(prepared: Prepared, settings: Sequence[Generation]) -> int:
    prompt = max(len(ids) for _, ids in prepared.tokens["search"])
    needed = prompt + max(one.max_new_tokens for one in settings)
    return max(needed, prepared.spec.max_model_len)


def _positions(prepared: Prepared) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(prepared.spec.skeleton)
    return int(getattr(config, "max_position_embeddings", None) or prepared.spec.max_model_len)
