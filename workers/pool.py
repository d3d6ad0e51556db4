"""The pool: turns a stream of jobs into a stream of transcripts, over Ray actors with live engines.

A thread per worker, which lives as long as the pool, takes pieces of jobs from the feed of the run and brings the
answers. A worker that dies, hangs, or whose engine is broken is replaced by its thread, while the others go on and
the run may end without it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray

from fitness.generation import Generation
from workers.actor import Answered, Handle, Worker
from workers.cluster import connect, least_cpus, nodes, worker_environment
from workers.engine import EngineSpec
from workers.errors import EngineSetupError, WorkersLost, last_line
from workers.feed import Feed
from workers.job import Job, JobFailed, Share, Split, Transcript
from workers.machine import Resources, share_out
from workers.pieces import Piece
from workers.schedule import Schedule

_CLOSE_SECONDS = 10.0
_STARTS = 3  # where no worker lives and each failed to start this often in a row, the run is given up
_LONGEST_PAUSE_SECONDS = 60.0


@dataclass
class _Place:
    """A worker's place in the pool: who holds it, and how often in a row nobody could be started there."""

    handle: Handle | None = None
    alive: bool = False
    failures: int = 0


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
        max_attempts: how often a job, or a piece of one, is tried when workers die.
        evaluation_timeout_seconds: a worker that takes longer for a job is killed.
        start_timeout_seconds: how long an engine may take to start.
        ray_address: an existing cluster; ``None``: a local one that lives as long as the pool.
        split_prompts: least answers of the pieces in which the last jobs of a run are done; ``None``: all are done
            whole.
        worker_class: what runs in the actors.
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
        split_prompts: int | None = None,
        worker_class: type[Worker] = Worker,
    ) -> None:
        self._spec = spec
        self._prompts = {split: [(i, list(ids)) for i, ids in pairs] for split, pairs in prompts.items()}
        self._generation = generation
        self._asked = (count, cpus_per_worker, gpus_per_worker)
        self._max_attempts = max_attempts
        self._evaluation_timeout_seconds = evaluation_timeout_seconds
        self._start_timeout_seconds = start_timeout_seconds
        self._ray_address = ray_address
        self._split_prompts = split_prompts
        self._worker_class = worker_class
        self._owns_ray = False
        self._resources = Resources(0, 0, 0)
        self._prompts_reference: Any = None
        self._places: list[_Place] = []
        self._inboxes: list[queue.SimpleQueue[Feed | None]] = []
        self._threads: list[threading.Thread] = []
        self._feed: Feed | None = None
        self._last_reason = ""
        self._lock = threading.Lock()
        self._closing = threading.Event()

    @property
    def count(self) -> int:
        """Number of workers that were started."""
        return len(self._places)

    def start(self) -> None:
        """Starts Ray where need be, and every engine, at the same time.

        Raises:
            EngineSetupError: the machine lacks CPUs or GPUs, or an engine refused to start.
            WorkersLost: an engine's process died or hung while starting.
        """
        count, cpus, gpus = self._asked
        self._closing.clear()
        try:
            self._owns_ray = connect(self._ray_address, least_cpus(count, cpus))
            ranks = self._spec.tensor_parallel_size
            self._resources = share_out(nodes(), ranks=ranks, count=count, cpus=cpus, gpus=gpus)
            self._prompts_reference = ray.put(self._prompts)
            self._places = [_Place(self._create()) for _ in range(self._resources.count)]
            for place in self._places:
                assert place.handle is not None
                if error := place.handle.started(self._start_timeout_seconds, self._closing):
                    # What the engine itself refused is a setting; that its process died or hung need not be.
                    raise (EngineSetupError if place.handle.refused else WorkersLost)(error)
                place.alive = True
        except BaseException:
            self.close()
            raise
        self._inboxes = [queue.SimpleQueue() for _ in self._places]
        self._threads = [
            threading.Thread(target=self._serve, args=(index,), name=f"worker-{index}", daemon=True)
            for index in range(len(self._places))
        ]
        for thread in self._threads:
            thread.start()

    def run(self, jobs: Iterable[Job]) -> Iterator[Transcript | JobFailed]:
        """Does the jobs; results come as they finish, in any order.

        The workers go on while the caller is busy with a result. The run ends as soon as every job that was taken
        has its result, also while workers are being replaced.

        Args:
            jobs: asked for the next one, from any thread but one at a time, when a worker is free; it must not wait.
                An iterator that ends ends the run after what is in flight. Only where its ``operator.length_hint``
                tells how many are left are the last ones split.

        Raises:
            WorkersLost: no worker lives, and none can be started any more.
        """
        if self._feed is not None:
            raise RuntimeError("a pool does one run at a time; the last one has not ended")
        prompts = {split: len(pairs) for split, pairs in self._prompts.items()}
        schedule = Schedule(jobs, prompts, max_attempts=self._max_attempts, split_prompts=self._split_prompts)
        feed = self._feed = Feed(schedule, self._alive)
        try:
            for inbox in self._inboxes:
                inbox.put(feed)
            self._give_up_if_lost()
            yield from feed.results()
        finally:
            feed.cancel()
            self._feed = None

    def cancel(self) -> None:
        """Ends ``run`` soon: no more jobs, and what is in work is dropped. Callable from another thread.

        A worker finishes what it is at before it takes a job of the next run.
        """
        feed = self._feed
        if feed is not None:
            feed.cancel()

    def close(self) -> None:
        """Ends every worker, and Ray where the pool started it. No process is left."""
        self.cancel()
        self._closing.set()
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS)
        if ray.is_initialized():
            closing = [p.handle.close() for p in self._places if p.handle is not None and p.alive]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
            for place in self._places:
                if place.handle is not None:
                    place.handle.kill()
            if self._owns_ray:
                ray.shutdown()
        self._places, self._inboxes, self._threads = [], [], []
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

    def _alive(self) -> list[int]:
        return [index for index, place in enumerate(self._places) if place.alive]

    # One worker's thread

    def _serve(self, index: int) -> None:
        place = self._places[index]
        while (feed := self._inboxes[index].get()) is not None:
            while not self._closing.is_set():
                if not place.alive:
                    self._replace(index)
                    continue
                try:
                    piece = feed.take(index)
                    if piece is None:
                        break
                    self._do(index, piece, feed)
                except Exception as error:  # a dead background task must end the run loudly
                    feed.fail(error)

    def _do(self, index: int, piece: Piece, feed: Feed) -> None:
        place = self._places[index]
        assert place.handle is not None
        started, clock = time.time(), time.monotonic()
        limit = self._evaluation_timeout_seconds
        outcome = place.handle.do(piece.job, piece.start, piece.stop, limit, self._closing)
        if outcome is None:
            return
        busy = time.monotonic() - clock
        if isinstance(outcome, Answered):
            share = Share(index, piece.stop - piece.start, started, busy, outcome.peak_bytes)
            feed.done(piece, outcome.responses, outcome.seconds, share)
            return
        if outcome.fatal:
            place.alive = False
            self._last_reason = f"worker {index}: {outcome.reason}"
        seconds = dict(outcome.seconds) or {outcome.stage: busy}
        share = Share(index, 0, started, busy)
        feed.failed(piece, outcome.stage, outcome.reason, seconds, share, worker_lost=outcome.fatal)

    def _replace(self, index: int) -> None:
        """Kills a worker and starts others in its place, with growing pauses, until one lives or the pool closes."""
        place = self._places[index]
        pause = 0.0
        while not self._closing.wait(pause):
            try:
                if place.handle is not None:
                    place.handle.kill()
                place.handle = self._create()
                error = place.handle.started(self._start_timeout_seconds, self._closing)
            except Exception as refused:  # Ray itself is in trouble; it may recover
                error = last_line(refused)
            if error is None:
                place.failures, place.alive = 0, True
                return
            place.failures += 1
            self._last_reason = f"worker {index} did not start again: {error}"
            self._give_up_if_lost()
            pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause + 1)

    def _give_up_if_lost(self) -> None:
        with self._lock:
            feed = self._feed
            if feed is None or any(place.alive or place.failures < _STARTS for place in self._places):
                return
            for place in self._places:  # the next run gives them as many tries again
                place.failures = 0
        feed.fail(WorkersLost(f"no worker is left, and none starts again. {self._last_reason}"))

    def _create(self) -> Handle:
        resources = self._resources
        return Handle(
            self._worker_class,
            self._spec,
            self._prompts_reference,
            self._generation,
            cpus=resources.cpus,
            gpus=resources.gpus,
            env=worker_environment(resources.cpus, self._spec.tensor_parallel_size),
        )
