"""The pool: turns a stream of jobs into a stream of transcripts, over Ray actors with live engines.

A thread per worker takes a job, waits for its worker, and hands over the result. A worker that dies, hangs, or whose
engine is broken is replaced by its thread, and the job goes back to the front of the stream, for whoever is free first.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayActorError, RayError

from fitness.generation import Generation
from workers.actor import Answered, Failure, create_worker
from workers.engine import EngineSpec
from workers.errors import EngineSetupError, WorkersLost
from workers.feed import Feed
from workers.job import Job, JobFailed, Split, Transcript

_POLL_SECONDS = 0.5  # how soon a waiting thread notices a cancel
_CLOSE_SECONDS = 10.0
_STARTS = 3  # a worker that fails to start this often in a row is given up
_LONGEST_PAUSE_SECONDS = 60.0


class Pool:
    """Workers with live engines.

    Use as a context manager, or call ``start`` and ``close``. One ``run`` at a time.

    Args:
        spec: the engines.
        prompts: (prompt id, token ids) pairs per split.
        generation: how to decode.
        count: number of workers; ``None``: one per ``tensor_parallel_size`` GPUs of the cluster, else 1.
        cpus_per_worker: CPUs reserved per worker, and threads of its engine; ``None``: the cores divided.
        gpus_per_worker: GPUs reserved per worker; ``None``: ``tensor_parallel_size`` where there are GPUs.
        max_attempts: how often a job is tried when workers die.
        evaluation_timeout_seconds: a worker that takes longer for a job is killed.
        start_timeout_seconds: how long an engine may take to start.
        ray_address: an existing cluster; ``None``: a local one that lives as long as the pool.
    """

    def __init__(
        self,
        spec: EngineSpec,
        prompts: Mapping[Split, Sequence[tuple[str, list[int]]]],
        generation: Generation,
        *,
        count: int | None = None,
        cpus_per_worker: float | None = None,
        gpus_per_worker: float | None = None,
        max_attempts: int = 3,
        evaluation_timeout_seconds: float | None = None,
        start_timeout_seconds: float = 900,
        ray_address: str | None = None,
    ) -> None:
        self._spec = spec
        self._prompts = {split: [(i, list(ids)) for i, ids in pairs] for split, pairs in prompts.items()}
        self._generation = generation
        self._count = count
        self._cpus = cpus_per_worker
        self._gpus = gpus_per_worker
        self._max_attempts = max_attempts
        self._evaluation_timeout_seconds = evaluation_timeout_seconds
        self._start_timeout_seconds = start_timeout_seconds
        self._ray_address = ray_address
        self._owns_ray = False
        self._prompts_reference: Any = None
        self._workers: list[Any] = []
        self._feed: Feed | None = None

    @property
    def count(self) -> int:
        """Number of workers that were started."""
        return len(self._workers)

    def start(self) -> None:
        """Starts Ray where need be, and every engine, at the same time.

        Raises:
            EngineSetupError: the machine lacks CPUs or GPUs, or an engine did not start.
        """
        try:
            self._connect()
            count, cpus, gpus = self._resources()
            self._count, self._cpus, self._gpus = count, cpus, gpus
            self._prompts_reference = ray.put(self._prompts)
            self._workers = [self._create() for _ in range(count)]
            deadline = time.monotonic() + self._start_timeout_seconds
            for worker, reference in [(w, w.start.remote()) for w in self._workers]:
                error = self._started(worker, reference, deadline)
                if error is not None:
                    raise EngineSetupError(error)
        except BaseException:
            self.close()
            raise

    def run(self, jobs: Iterable[Job]) -> Iterator[Transcript | JobFailed]:
        """Does the jobs; results come as they finish, in any order.

        The workers go on while the caller is busy with a result.

        Raises:
            WorkersLost: no worker can be started any more.
        """
        if self._feed is not None:
            raise RuntimeError("a pool does one run at a time; the last one has not ended")
        feed = self._feed = Feed(jobs)
        results: queue.Queue[Transcript | JobFailed | BaseException | None] = queue.Queue()
        threads = [
            threading.Thread(target=self._serve, args=(index, feed, results), name=f"worker-{index}", daemon=True)
            for index in range(len(self._workers))
        ]
        for thread in threads:
            thread.start()
        running, lost = len(threads), ""
        try:
            while running:
                result = results.get()
                if result is None:
                    running -= 1
                elif isinstance(result, WorkersLost):
                    running, lost = running - 1, str(result)
                elif isinstance(result, BaseException):
                    raise result
                elif not feed.cancelled:
                    yield result
            if lost and not feed.cancelled and feed.take() is not None:
                raise WorkersLost(lost)
        finally:
            feed.cancel()
            for thread in threads:
                thread.join()
            self._feed = None

    def cancel(self) -> None:
        """Ends ``run`` soon: no more jobs, and what is in work is dropped. Callable from another thread."""
        feed = self._feed
        if feed is not None:
            feed.cancel()

    def close(self) -> None:
        """Ends every worker, and Ray where the pool started it. No process is left."""
        self.cancel()
        if ray.is_initialized():
            workers = [worker for worker in self._workers if worker is not None]
            closing = [worker.close.remote() for worker in workers]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
            for worker in workers:
                ray.kill(worker)
            if self._owns_ray:
                ray.shutdown()
        self._workers = []
        self._owns_ray = False

    def __enter__(self) -> Self:
        """Starts the pool."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the pool."""
        self.close()

    # One worker's thread

    def _serve(self, index: int, feed: Feed, results: queue.Queue[Any]) -> None:
        try:
            if self._workers[index] is None:  # given up in an earlier run
                self._replace(index, feed)
            while (job := feed.take()) is not None:
                started = time.monotonic()
                outcome = self._attempt(self._workers[index], job, feed)
                if outcome is None:  # cancelled
                    break
                if isinstance(outcome, Answered):
                    results.put(Transcript(job, outcome.responses, outcome.seconds, index))
                    feed.done()
                    continue
                if outcome.fatal and job.attempt < self._max_attempts:
                    feed.again(replace(job, attempt=job.attempt + 1))
                else:
                    seconds = dict(outcome.seconds) or {outcome.stage: time.monotonic() - started}
                    results.put(JobFailed(job, outcome.stage, outcome.reason, seconds))
                    feed.done()
                if outcome.fatal and not feed.cancelled:
                    self._replace(index, feed)
            results.put(None)
        except BaseException as error:
            results.put(error)

    def _attempt(self, worker: Any, job: Job, feed: Feed) -> Answered | Failure | None:
        reference = worker.do.remote(job)
        limit = self._evaluation_timeout_seconds
        deadline = math.inf if limit is None else time.monotonic() + limit
        while not feed.cancelled:
            ready, _ = ray.wait([reference], timeout=min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
            if ready:
                try:
                    outcome: Answered | Failure = ray.get(reference)
                except RayActorError as error:
                    return Failure("worker", f"the worker's process died: {_last_line(error)}", True, {})
                except RayError as error:
                    return Failure("worker", _last_line(error), True, {})
                return outcome
            if time.monotonic() >= deadline:
                reason = f"took longer than {limit:g} s (workers.evaluation_timeout_seconds)"
                return Failure("worker", reason, True, {})
        return None

    def _replace(self, index: int, feed: Feed) -> None:
        """Kills a worker and starts another in its place, with growing pauses."""
        error = ""
        for attempt in range(_STARTS):
            if self._workers[index] is not None:
                ray.kill(self._workers[index])
                self._workers[index] = None
            pause = min(_LONGEST_PAUSE_SECONDS, 2.0**attempt - 1)
            end = time.monotonic() + pause
            while time.monotonic() < end and not feed.cancelled:
                time.sleep(min(_POLL_SECONDS, pause))
            if feed.cancelled:
                break
            worker = self._workers[index] = self._create()
            failed = self._started(worker, worker.start.remote(), time.monotonic() + self._start_timeout_seconds, feed)
            if failed is None:
                return
            error = failed
        if self._workers[index] is not None:
            ray.kill(self._workers[index])
            self._workers[index] = None
        if not feed.cancelled:
            raise WorkersLost(f"worker {index} did not start again after {_STARTS} attempts: {error}")

    # Ray

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray otherwise hides the GPUs from processes that reserve none, and warns about it.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._ray_address is not None:
            options["address"] = self._ray_address
        else:
            needed = math.ceil((self._count or 1) * (self._cpus or 1))
            options |= {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": max(_cores(), needed),
                "object_store_memory": 256 * 2**20,  # only prompts and answers pass through it
            }
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = self._ray_address or "a local cluster"
            raise EngineSetupError(
                f"Ray could not connect to {where} ({_last_line(error)}). Check workers.ray_address."
            ) from error
        self._owns_ray = True
        # Ray takes SIGTERM for itself ("this method overwrites the sigterm handler of the driver process").
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)

    def _resources(self) -> tuple[int, float, float]:
        """Workers, CPUs per worker, GPUs per worker."""
        have = ray.cluster_resources()
        total_gpus, total_cpus = float(have.get("GPU", 0)), float(have.get("CPU", 1))
        ranks = self._spec.tensor_parallel_size
        gpus = self._gpus if self._gpus is not None else (float(ranks) if total_gpus else 0.0)
        count = self._count or (max(1, int(total_gpus // gpus)) if gpus else 1)
        cpus = self._cpus if self._cpus is not None else float(max(1, int(total_cpus // count)))
        for what, each, total in (("GPUs", gpus, total_gpus), ("CPUs", cpus, total_cpus)):
            if count * each > total:
                raise EngineSetupError(
                    f"{count} workers with {each:g} {what} each need {count * each:g}, and Ray sees {total:g}. "
                    f"Lower workers.count, workers.{what.lower()}_per_worker or workers.tensor_parallel_size, or "
                    "make more visible (CUDA_VISIBLE_DEVICES)."
                )
        return count, cpus, gpus

    def _create(self) -> Any:
        cpus = self._cpus or 1
        threads = max(1, int(cpus // self._spec.tensor_parallel_size))
        env = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        # Threads that wait should sleep: on shared cores the default, spinning, was measured 600 times slower.
        env["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        # An existing cluster's processes do not inherit from this one.
        passed_on = ("HF_HUB_OFFLINE", "HF_HOME", "VLLM_")
        env |= {name: value for name, value in os.environ.items() if name.startswith(passed_on)}
        return create_worker(
            self._spec, self._prompts_reference, self._generation, cpus=cpus, gpus=self._gpus or 0, env=env
        )

    def _started(self, worker: Any, reference: Any, deadline: float, feed: Feed | None = None) -> str | None:
        """Waits for an engine; returns why it did not start."""
        while feed is None or not feed.cancelled:
            left = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait([reference], timeout=min(_POLL_SECONDS, left))
            if ready:
                try:
                    error: str | None = ray.get(reference)
                except RayError as died:
                    return f"the engine's process died while starting (out of memory?): {_last_line(died)}"
                return error
            if left == 0:
                ray.kill(worker)
                free = ray.available_resources()
                return (
                    f"the {self._spec.engine} engine did not start within {self._start_timeout_seconds:g} s "
                    f"(free in Ray: {free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs). "
                    "Raise workers.start_timeout_seconds, or free what other jobs of the cluster hold."
                )
        return "cancelled"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
