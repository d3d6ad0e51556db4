"""One sitting of a run: parents and baselines, the search, the finalists; and how it ended.

Apart from ``evolve.run`` so that looking at a run does not load the machine-learning libraries.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

from evolve.driver import Driver
from evolve.errors import RunStopped
from evolve.evaluator import Evaluator
from evolve.finals import finalists
from evolve.ledger import Ledger
from evolve.prepare import Prepared, started
from evolve.progress import Progress
from evolve.run import Run, versions
from evolve.search import Searched, search
from evolve.stopping import StopConditions
from fitness.errors import UserMistake
from workers.errors import WorkersLost


def execute(run: Run, evaluator: Evaluator | None, progress: Progress) -> None:
    """Run, or go on where the run stopped. The caller holds the run's lock.

    Raises:
        RunStopped: a failure stopped it; resumable.
        KeyboardInterrupt: passed on; resumable.
    """
    prepared = run.prepared()
    run.save(status="running", stop_reason=None)
    lent: AbstractContextManager[Evaluator]
    try:
        progress.started(run.state.plan, len(run.store.rows()))
        if evaluator is None:
            progress.stage(f"starting {prepared.workers} {prepared.spec.engine} worker(s)")
            lent = started(prepared, run.transcripts)
        else:
            lent = nullcontext(evaluator)
        with lent as evaluator:
            try:
                searched = _stages(run, prepared, evaluator, progress)
            except BaseException:
                evaluator.cancel()
                raise
    except KeyboardInterrupt:
        run.save(status="interrupted", stop_reason="interrupted")
        raise
    except WorkersLost as error:
        run.save(status="failed", stop_reason=str(error))
        raise RunStopped(str(error)) from error
    except (UserMistake, RunStopped) as error:
        run.save(status="failed", stop_reason=str(error))
        raise
    except Exception as error:  # a full disk, a locked database, a bug: what is recorded is safe
        reason = f"{type(error).__name__}: {error}"
        run.save(status="failed", stop_reason=reason)
        raise RunStopped(reason) from error
    run.save(status="finished", stop_reason=searched.stop_reason)


def _stages(run: Run, prepared: Prepared, evaluator: Evaluator, progress: Progress) -> Searched:
    config, genome = run.config, prepared.genome
    ledger = Ledger(
        run.store,
        evaluator,
        genome,
        transcripts=run.transcripts,
        seed=prepared.generation.seed,
        max_failed_share=config.search.max_failed_share,
        progress=progress,
    )
    progress.stage("parents and baselines")
    ledger.evaluate([c for c in prepared.baselines if c.split == "search"])
    progress.stage("search")
    clock = _Stopwatch(run)
    try:
        searched = _search(run, prepared, ledger, clock, progress)
    finally:
        clock.seconds()  # keeps the time of a generation that was cut short, too
    if searched.drift > 0:
        _warn_of_drift(run, searched.drift, progress)
    progress.stage("finalists and parents on validation prompts")
    found = config.finalists
    rows = run.store.rows("search")
    chosen = finalists(genome, rows, searched.mean, top_k=found.top_k, repeats=found.repeats)
    ledger.evaluate([*(c for c in prepared.baselines if c.split == "validation"), *chosen])
    return searched


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
        recorded=lambda key: run.store.get(key) is not None,
        seconds=clock.seconds,
        progress=progress,
    )


class _Stopwatch:
    """Wall-clock seconds of searching over all sittings, kept in the run's state."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._before = run.state.seconds
        self._begun = time.monotonic()

    def seconds(self) -> float:
        total = self._before + time.monotonic() - self._begun
        self._run.save(seconds=total)
        return total


def _warn_of_drift(run: Run, drift: float, progress: Progress) -> None:
    now = versions()
    changed = [f"{k} {v} -> {now.get(k)}" for k, v in run.state.versions.items() if now.get(k) != v]
    text = (
        f"asking again gave genotypes up to {drift:.2g} away from those recorded: this machine or its libraries "
        f"compute otherwise ({'; '.join(changed) or 'no version changed: another processor or BLAS'}). "
        "The recorded ones are what the search was told."
    )
    progress.warn(text)
    run.save(warnings=(*run.state.warnings, text))
