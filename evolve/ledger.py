"""The ledger of a run: evaluates what the history does not hold yet, and records every outcome before it goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from evolve.errors import RunStopped
from evolve.evaluation import Candidate, Evaluation
from evolve.evaluator import Evaluator
from evolve.genome import Genome
from evolve.interrupt import Interrupt
from evolve.outcome import Failed, Outcome, read_outcome, transcript_path
from evolve.progress import Progress
from evolve.store import Store
from workers.job import Job


class Ledger:
    """Candidates in, rows out, in their order.

    A row that the store holds is given back. A complete transcript whose row is missing (the driver died between
    the two) is adopted. Only the rest is evaluated.

    Args:
        store: the history.
        evaluator: gives what evaluates, once it is needed: workers take minutes to start.
        genome: for the decoded values of a row.
        transcripts: folder of the transcript files.
        seed: decoding seed, the same for all.
        max_failed_share: above it a batch stops the run.
        interrupt: a wish to stop ends a batch after what is in flight.
        progress: who watches.
    """

    def __init__(
        self,
        store: Store,
        evaluator: Callable[[], Evaluator],
        genome: Genome,
        *,
        transcripts: Path,
        seed: int,
        max_failed_share: float,
        interrupt: Interrupt,
        progress: Progress,
    ) -> None:
        self._store = store
        self._evaluator = evaluator
        self._genome = genome
        self._transcripts = transcripts
        self._seed = seed
        self._max_failed_share = max_failed_share
        self._interrupt = interrupt
        self._progress = progress

    def evaluate(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Rows for the candidates, in their order.

        Raises:
            RunStopped: more than ``max_failed_share`` of them failed. Their failures are not recorded, so that a
                resumed run tries them again; what succeeded is. Their transcripts stay as ``KEY.failed.jsonl``.
            KeyboardInterrupt: the user wished to stop; what was in flight is recorded.
        """
        missing = {c.key: c for c in candidates if c.key not in self._store}
        jobs, failures = [], []
        for candidate in missing.values():
            job = Job(candidate.key, candidate.recipe, candidate.split, candidate.repeats, self._seed)
            adopted = read_outcome(transcript_path(self._transcripts, candidate.key), job)
            if adopted is None:
                jobs.append(job)
            elif isinstance(adopted.result, Failed):
                failures.append(adopted)
            else:
                self._record(candidate, adopted)
        if jobs:
            evaluator = self._evaluator()
            with self._interrupt.finishing():
                for outcome in evaluator.evaluate(_UntilInterrupted(jobs, self._interrupt)):
                    if isinstance(outcome.result, Failed):
                        failures.append(outcome)
                    else:
                        self._record(missing[outcome.job.key], outcome)
        self._settle(failures, missing, len(candidates))
        rows = [self._store.get(c.key) for c in candidates]
        assert all(rows), "an evaluator must give one outcome per job"
        return [row for row in rows if row is not None]

    def _settle(self, failures: Sequence[Outcome], missing: Mapping[str, Candidate], total: int) -> None:
        if failures and len(failures) > self._max_failed_share * total:
            for outcome in failures:
                if outcome.transcript is not None:
                    # Out of the way of the next try, but kept: it holds the answers and what the judge replied.
                    outcome.transcript.replace(outcome.transcript.with_suffix(".failed.jsonl"))
            first = failures[0]
            assert isinstance(first.result, Failed)
            raise RunStopped(
                f"{len(failures)} of {total} evaluations failed, above search.max_failed_share "
                f"{self._max_failed_share:g}. The first: {first.job.key}: {first.result.stage}: {first.result.reason}. "
                f"What was answered is kept in {self._transcripts} (*.failed.jsonl); a resumed run tries them again."
            )
        for outcome in failures:
            self._record(missing[outcome.job.key], outcome)

    def _record(self, candidate: Candidate, outcome: Outcome) -> None:
        transcript = None if outcome.transcript is None else outcome.transcript.name
        row = Evaluation(candidate, outcome.result, outcome.seconds, transcript, outcome.shares, outcome.lost)
        values = {} if candidate.genotype is None else self._genome.values(np.array(candidate.genotype))
        self._progress.evaluated(self._store.add(row, self._genome.coordinates, values))


class _UntilInterrupted(Iterator[Job]):
    """The jobs in order, and none any more once the user wishes to stop."""

    def __init__(self, jobs: Iterable[Job], interrupt: Interrupt) -> None:
        self._jobs = deque(jobs)
        self._interrupt = interrupt

    def __next__(self) -> Job:
        if not self.__length_hint__():
            raise StopIteration
        return self._jobs.popleft()

    def __length_hint__(self) -> int:
        return 0 if self._interrupt.wished else len(self._jobs)
