"""One sitting of a run: parents and baselines, the search, the finalists; and how it ended.

Apart from ``evolve.run`` so that looking at a run does not load the machine-learning libraries.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress

from evolve.driver import Driver
from evolve.environment import versions
from evolve.errors import RunStopped
from evolve.evaluator import Evaluator
from evolve.finals import finalists
from evolve.interrupt import Interrupt
from evolve.ledger import Ledger
from evolve.population import keep_population
from evolve.prepare import Prepared, check_disk, started
from evolve.probe_findings import ENDED_LEAST
from evolve.progress import Progress
from evolve.run import Run
from evolve.search import Searched, search
from evolve.state import Status
from evolve.stopping import StopConditions
from fitness.errors import JudgeStopped, UserMistake
from workers.errors import WorkersLost


def execute(run: Run, evaluator: Evaluator | None, progress: Progress, interrupt: Interrupt) -> None:
    """Run, or go on where the run stopped. The caller holds the run's lock.

    Raises:
        RunStopped: a failure stopped it; resumable.
        KeyboardInterrupt: passed on; resumable.
    """
    prepared = run.prepared()
    done = len(run.store)
    if shortage := check_disk(prepared, run.folder, run.state.plan.total_evaluations - done):
        progress.warn(shortage)
    try:
        run.save(status="running", stop_reason=None, sittings=(*run.state.sittings, time.time()))
        progress.started(run.state.plan, done)
        with ExitStack() as stack:
            lender = _Lender(run, prepared, evaluator, progress, stack)
            try:
                searched = _stages(run, prepared, lender, progress, interrupt)
            except BaseException:
                lender.cancel()
                raise
        run.save(status="finished", stop_reason=searched.stop_reason)
    except KeyboardInterrupt:
        _end(run, "interrupted", "interrupted")
        raise
    except (UserMistake, RunStopped) as error:
        _end(run, "failed", str(error))
        raise
    except JudgeStopped as error:
        _end(run, "interrupted", str(error))
        raise RunStopped(str(error)) from error
    except WorkersLost as error:
        _end(run, "failed", str(error))
        raise RunStopped(str(error)) from error
    except Exception as error:  # a full disk, a locked database, a bug: what is recorded is safe
        reason = _explain(error)
        _end(run, "failed", reason)
        raise RunStopped(reason) from error


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}: {error.filename or 'the run folder'}. Free some space; what was finished is kept."
    return f"{type(error).__name__}: {error}"


def _end(run: Run, status: Status, reason: str) -> None:
    # On a full disk not even this can be written; a run that nobody drives counts as interrupted.
    with suppress(OSError):
        run.save(status=status, stop_reason=reason)


class _Lender:
    """Starts the workers when the first job needs them: replaying a history needs none."""

    def __init__(
        self, run: Run, prepared: Prepared, given: Evaluator | None, progress: Progress, stack: ExitStack
    ) -> None:
        self._run = run
        self._prepared = prepared
        self._evaluator = given
        self._progress = progress
        self._stack = stack
        self.seconds = 0.0  # spent on starting

    def __call__(self) -> Evaluator:
        if self._evaluator is None:
            begun = time.monotonic()
            evaluator = self._stack.enter_context(started(self._prepared, self._run.folder, self._progress.stage))
            self.seconds = time.monotonic() - begun
            self._evaluator = evaluator
            _remember_judges(self._run, evaluator.answers_as, self._progress)
        return self._evaluator

    def cancel(self) -> None:
        if self._evaluator is not None:
            self._evaluator.cancel()


def _stages(run: Run, prepared: Prepared, lender: _Lender, progress: Progress, interrupt: Interrupt) -> Searched:
    config, genome = run.config, prepared.genome
    ledger = Ledger(
        run.store,
        lender,
        genome,
        transcripts=run.transcripts,
        seed=prepared.generation.seed,
        max_failed_share=config.search.max_failed_share,
        interrupt=interrupt,
        progress=progress,
    )
    progress.stage("parents and baselines")
    ledger.evaluate([c for c in prepared.baselines if c.split == "search"])
    _warn_of_endless(run, progress)
    progress.stage("search")
    clock = _Stopwatch(run, lender)
    try:
        searched = _search(run, prepared, ledger, clock, progress)
    finally:
        with suppress(OSError):  # a full disk has been noticed already
            clock.seconds()  # keeps the time of a generation that was cut short, too
    progress.stage("finalists and parents on validation prompts")
    chosen = finalists(
        genome,
        run.store.summaries("search"),
        searched.mean,
        get=run.store.get,
        top_k=config.finalists.top_k,
        repeats=config.finalist_repeats,
        search_repeats=config.search.repeats,
        label=f"distribution mean after generation {searched.generations - 1}"
        if _was_extended(run)
        else "distribution mean",
    )
    ledger.evaluate([*(c for c in prepared.baselines if c.split == "validation"), *chosen])
    return searched


def _was_extended(run: Run) -> bool:
    return any(path.startswith("budget.") for change in run.state.changes for path in change["settings"])


def _search(run: Run, prepared: Prepared, ledger: Ledger, clock: _Stopwatch, progress: Progress) -> Searched:
    config, genome, plan = run.config, prepared.genome, run.state.plan
    return search(
        genome,
        plan,
        Driver(genome.x0, sigma0=config.search.sigma0, popsize=plan.popsize, seed=config.seed),
        StopConditions(
            target_fitness=config.search.target_fitness,
            min_sigma=config.search.min_sigma,
            stagnation_generations=config.search.stagnation_generations,
            max_seconds=None if config.budget.max_hours is None else config.budget.max_hours * 3600,
        ),
        ledger.evaluate,
        repeats=config.search.repeats,
        stored=run.store.get,
        kept=lambda generation, asked: keep_population(run.folder, generation, asked),
        drifted=lambda gap: _warn_of_drift(run, gap, progress),
        seconds=clock.seconds,
        progress=progress,
    )


class _Stopwatch:
    """Wall-clock seconds of searching over all sittings, without starting engines; kept in the run's state."""

    def __init__(self, run: Run, lender: _Lender) -> None:
        self._run = run
        self._lender = lender
        self._begun = time.monotonic() - lender.seconds - run.state.seconds

    def seconds(self) -> float:
        total = time.monotonic() - self._begun - self._lender.seconds
        self._run.save(seconds=total)
        return total


def _warn_of_drift(run: Run, gap: float, progress: Progress) -> None:
    now = versions()
    changed = [f"{k} {v} -> {now.get(k)}" for k, v in run.state.versions.items() if now.get(k) != v]
    text = (
        "asking again gave genotypes that differ from those recorded: this machine or its libraries compute "
        f"otherwise ({'; '.join(changed) or 'no version changed'}). The recorded ones are what the search is told; "
        "what follows is not what the first machine would have asked."
    )
    if text not in run.state.warnings:
        progress.warn(f"{text} The largest difference so far is {gap:.2g}.")
        run.save(warnings=(*run.state.warnings, text))


def _warn_of_endless(run: Run, progress: Progress) -> None:
    """A parent that does not end its answers: its merges inherit that."""
    for row in run.store.rows("parent"):
        ended = None if row.fitness is None else row.fitness.parts.get("observed.ended")
        if row.candidate.split != "search" or ended is None or ended >= ENDED_LEAST:
            continue
        text = (
            f"answers-end: {row.candidate.label}: {ended:.0%} of its answers ended by themselves, the others ran to "
            "generation.max_new_tokens. Its merges inherit this; evolve check says what may explain it."
        )
        if text not in run.state.warnings:
            progress.warn(text)
            run.save(warnings=(*run.state.warnings, text))


def _remember_judges(run: Run, answers_as: Mapping[str, str], progress: Progress) -> None:
    """Who judged first; a name such as gpt-4o-mini can come to mean another model in the middle of a run."""
    known = run.state.judges
    for setting, model in answers_as.items():
        if known.get(setting, model) != model:
            text = (
                f"{setting}: its server answered as {known[setting]} when the run began, and as {model} now. Scores "
                "before and after are those of two judges."
            )
            progress.warn(text)
            run.save(warnings=tuple(dict.fromkeys([*run.state.warnings, text])))
    if answers_as.keys() - known.keys():
        run.save(judges={**answers_as, **known})
