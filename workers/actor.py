"""The Ray actor: a process that holds one live engine and does one job after the other."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from fitness.generation import Generation
from fitness.responses import Response
from workers.engine import Engine, EngineSpec, start_engine
from workers.errors import CandidateFailed, EngineSetupError
from workers.job import Job, Split

# A repeat of an evaluation samples with seeds far from those of the first: prompt i already has seed + i.
_REPEAT_STRIDE = 1_000_003


@dataclass(frozen=True)
class Answered:
    """A job was done.

    Attributes:
        responses: one per prompt.
        seconds: wall seconds by stage.
    """

    responses: tuple[Response, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Failure:
    """A job was not done.

    Attributes:
        stage: ``merge``, ``generate`` or ``worker``.
        reason: one line.
        fatal: the engine must be replaced; the job is worth another try.
        seconds: wall seconds by stage.
    """

    stage: str
    reason: str
    fatal: bool
    seconds: Mapping[str, float]


class Worker:
    """What runs in the actor's process. Failures are returned, not raised: values survive pickling unchanged."""

    def __init__(
        self,
        spec: EngineSpec,
        prompts: Mapping[Split, Sequence[tuple[str, list[int]]]],
        generation: Generation,
    ) -> None:
        self._spec = spec
        self._prompts = prompts
        self._generation = generation
        self._engine: Engine | None = None

    def start(self) -> str | None:
        """Starts the engine; returns why it could not, or ``None``."""
        missing = [f for f in (self._spec.skeleton, *self._spec.folders.values()) if not f.is_dir()]
        if missing:
            return (
                f"the node {socket.gethostname()} has no folder {missing[0]}. In a cluster, models, cache and runs "
                "must lie on a file system that all nodes share."
            )
        try:
            self._engine = start_engine(self._spec)
        except EngineSetupError as error:
            return str(error)
        return None

    def do(self, job: Job) -> Answered | Failure:
        """Merges the job's recipe and answers the prompts of its split."""
        if self._engine is None:
            return Failure("worker", "the engine has not been started", fatal=True, seconds={})
        seconds: dict[str, float] = {}
        stage, started = "merge", time.perf_counter()
        try:
            self._engine.swap(job.recipe)
            seconds["merge"] = time.perf_counter() - started
            stage, started = "generate", time.perf_counter()
            seed = job.seed + _REPEAT_STRIDE * job.repeat
            responses = self._engine.generate(self._prompts[job.split], self._generation, seed)
            seconds["generate"] = time.perf_counter() - started
        except CandidateFailed as error:
            seconds[stage] = time.perf_counter() - started
            return Failure(error.stage, error.reason, error.fatal, seconds)
        except Exception as error:  # out of memory, a bug in a kernel: nobody knows what state the engine is in
            seconds[stage] = time.perf_counter() - started
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            return Failure(stage, reason, fatal=True, seconds=seconds)
        return Answered(responses, seconds)

    def close(self) -> None:
        """Frees the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def create_worker(
    spec: EngineSpec, prompts: Any, generation: Generation, *, cpus: float, gpus: float, env: Mapping[str, str]
) -> Any:
    """Starts the actor's process (not yet its engine).

    Args:
        spec: what to start.
        prompts: the prompts per split, or a Ray reference to them.
        generation: how to decode.
        cpus: CPUs that Ray reserves.
        gpus: GPUs that Ray reserves; the process sees no others.
        env: environment variables of the process.

    Returns:
        Ray's handle.
    """
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, runtime_env={"env_vars": dict(env)})(Worker)
    return remote.remote(spec, prompts, generation)
