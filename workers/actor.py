"""A worker from both sides: the Ray actor, a process that holds one live engine, and its handle in the driver."""

from __future__ import annotations

import math
import resource
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from fitness.generation import Generation
from fitness.responses import Response
from workers.engine import Engine, EngineSpec, start_engine
from workers.errors import CandidateFailed, EngineSetupError, last_line
from workers.job import Job, Split

# A repeat of a prompt samples with a seed far from those of the first: prompt i already has seed + i.
REPEAT_STRIDE = 1_000_003
_POLL_SECONDS = 0.5  # how soon a waiting thread notices that the pool is closed


@dataclass(frozen=True)
class Answered:
    """A piece of a job was done.

    Attributes:
        responses: one per answer of the piece.
        seconds: wall seconds by stage.
        peak_bytes: largest resident memory of the process so far.
    """

    responses: tuple[Response, ...]
    seconds: Mapping[str, float]
    peak_bytes: int = 0


@dataclass(frozen=True)
class Failure:
    """A piece of a job was not done.

    Attributes:
        stage: ``merge``, ``generate`` or ``worker``.
        reason: one line.
        fatal: the engine must be replaced; the piece is worth another try.
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
        self._held: str | None = None  # hash of the recipe in the engine

    def make_engine(self, spec: EngineSpec) -> Engine:
        """The engine; a benchmark's worker has another."""
        return start_engine(spec)

    def start(self) -> str | None:
        """Starts the engine; returns why it could not, or ``None``."""
        missing = [f for f in (self._spec.skeleton, *self._spec.folders.values()) if not f.is_dir()]
        if missing:
            return (
                f"the node {socket.gethostname()} has no folder {missing[0]}. In a cluster, models, cache and runs "
                "must lie on a file system that all nodes share."
            )
        try:
            self._engine = self.make_engine(self._spec)
        except EngineSetupError as error:
            return str(error)
        return None

    def do(self, job: Job, start: int, stop: int) -> Answered | Failure:
        """Gives some of a job's answers, with its recipe merged into the engine where it is not there yet.

        Args:
            job: the job; its answers are (repeats x prompts) in the order of the prompts, repeat after repeat.
            start: index of the first answer.
            stop: index after the last.
        """
        if self._engine is None:
            return Failure("worker", "the engine has not been started", fatal=True, seconds={})
        seconds = {"merge": 0.0}
        stage, started = "merge", time.perf_counter()
        try:
            if self._held != job.recipe.hash:
                self._held = None
                self._engine.swap(job.recipe)
                self._held = job.recipe.hash
                seconds["merge"] = time.perf_counter() - started
            stage, started = "generate", time.perf_counter()
            prompts = self._prompts[job.split]
            places = [divmod(answer, len(prompts)) for answer in range(start, stop)]
            responses = self._engine.generate(
                [prompts[index] for _, index in places],
                job.generation or self._generation,
                [job.seed + REPEAT_STRIDE * repeat + index for repeat, index in places],
            )
            seconds["generate"] = time.perf_counter() - started
        except CandidateFailed as error:
            seconds[stage] = time.perf_counter() - started
            return Failure(error.stage, error.reason, error.fatal, seconds)
        except Exception as error:  # out of memory, a bug in a kernel: nobody knows what state the engine is in
            seconds[stage] = time.perf_counter() - started
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            return Failure(stage, reason, fatal=True, seconds=seconds)
        # Linux counts in KiB: https://man7.org/linux/man-pages/man2/getrusage.2.html
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Answered(responses, seconds, peak_bytes)

    def close(self) -> None:
        """Frees the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


class Handle:
    """A worker as the driver sees it. Its process and its engine start at once.

    Args:
        worker_class: what runs in the process.
        spec: what engine to start.
        prompts: the prompts per split, or a Ray reference to them.
        generation: how to decode.
        cpus: CPUs that Ray reserves.
        gpus: GPUs that Ray reserves; the process sees no others.
        env: environment variables of the process.
    """

    def __init__(
        self,
        worker_class: type[Worker],
        spec: EngineSpec,
        prompts: Any,
        generation: Generation,
        *,
        cpus: float,
        gpus: float,
        env: Mapping[str, str],
    ) -> None:
        options: dict[str, Any] = {"max_restarts": 0, "runtime_env": {"env_vars": dict(env)}}
        remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, **options)(worker_class)
        self._engine = spec.engine
        self._actor = remote.remote(spec, prompts, generation)
        self._starting = self._actor.start.remote()
        self._created = time.monotonic()
        self.refused = False  # whether the worker itself said that its engine cannot start

    def started(self, timeout_seconds: float, closing: threading.Event) -> str | None:
        """Waits for the engine; returns why it did not start. A worker that did not is killed."""
        deadline = self._created + timeout_seconds
        error: str | None = "cancelled"
        try:
            if self._wait(self._starting, deadline, closing):
                error = ray.get(self._starting)
                self.refused = error is not None
            elif not closing.is_set():
                free = ray.available_resources()
                error = (
                    f"the {self._engine} engine did not start within {timeout_seconds:g} s "
                    f"(free in Ray: {free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs). "
                    "Raise workers.start_timeout_seconds, or free what other jobs of the cluster hold."
                )
        except RayError as died:
            error = f"the engine's process died while starting (out of memory?): {last_line(died)}"
        if error is not None:
            self.kill()
        return error

    def do(
        self, job: Job, start: int, stop: int, timeout_seconds: float | None, closing: threading.Event
    ) -> Answered | Failure | None:
        """See :meth:`Worker.do`; ``None`` where the pool was closed meanwhile."""
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        try:
            reference = self._actor.do.remote(job, start, stop)
            if self._wait(reference, deadline, closing):
                outcome: Answered | Failure = ray.get(reference)
                return outcome
        except RayActorError as error:
            return Failure("worker", f"the worker's process died or its node vanished: {last_line(error)}", True, {})
        except RayError as error:
            return Failure("worker", last_line(error), True, {})
        if closing.is_set():
            return None
        reason = f"took longer than {timeout_seconds:g} s (workers.evaluation_timeout_seconds)"
        return Failure("worker", reason, True, {})

    def close(self) -> Any:
        """Asks it to free its engine; returns Ray's reference to wait for."""
        return self._actor.close.remote()

    def kill(self) -> None:
        """Ends its process."""
        ray.kill(self._actor)

    @staticmethod
    def _wait(reference: Any, deadline: float, closing: threading.Event) -> bool:
        while not closing.is_set():
            left = max(0.0, deadline - time.monotonic())
            if ray.wait([reference], timeout=min(_POLL_SECONDS, left))[0]:
                return True
            if left == 0:
                break
        return False
