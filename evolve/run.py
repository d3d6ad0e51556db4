"""A run: a folder with the resolved config, the plan, the history and the transcripts; created, executed, resumed."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from filelock import FileLock, Timeout

from evolve.budget import Plan, extend_plan
from evolve.environment import versions
from evolve.errors import StoreError
from evolve.interrupt import Interrupt
from evolve.outcome import write_durably
from evolve.progress import Progress, Silent
from evolve.store import Store, default_url

# Looking at a run (show, history, runs) must not wait for torch, mergekit and Ray to be imported, so what needs
# them is imported where it is used.
if TYPE_CHECKING:
    from evolve.config import RunConfig
    from evolve.evaluator import Evaluator
    from evolve.prepare import Prepared

Status = Literal["running", "finished", "interrupted", "failed"]
_LOCK_SECONDS = 1.0  # longer than anybody who looks at the status holds the lock


@dataclass(frozen=True)
class State:
    """What stands in ``run.json``.

    Attributes:
        status: ``running`` also of a run whose driver died; see :attr:`Run.status`.
        stop_reason: why the search ended, or what stopped the run.
        seconds: wall-clock seconds spent searching, over all sittings.
        plan: frozen when the run was created, or when it was last extended.
        sittings: when each sitting began, in Unix seconds.
        changes: settings changed since it was created: ``{"at": ISO time, "settings": {path: [old, new]}}``.
        versions: of the libraries, and the processor, that the run was created with.
        warnings: what a reader of the results should know.
        fingerprints: of what must not change in mid-run, when the run was created: ``questions`` (prompts, chat
            template, tokenizer, generation settings, rubric) and ``models`` (the parents' weights).
        score_bounds: least and greatest score that an answer can have.
        created: UTC, ISO 8601.
    """

    status: Status
    stop_reason: str | None
    seconds: float
    plan: Plan
    sittings: tuple[float, ...]
    changes: tuple[dict[str, Any], ...]
    versions: dict[str, str]
    warnings: tuple[str, ...]
    fingerprints: dict[str, str]
    score_bounds: tuple[float, float]
    created: str


class Run:
    """One run on the disk."""

    def __init__(self, folder: Path, state: State, store: Store) -> None:
        self.folder = folder
        self.store = store
        self.state = state
        self._prepared: Prepared | None = None

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.folder.name

    @cached_property
    def config(self) -> RunConfig:
        """The config that the run was created with and what was changed since, every default spelt out."""
        from evolve.config import load_config

        return load_config(self.folder / "config.yaml")

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
        from evolve.prepare import prepare

        name = name or f"{config.genome.merge_method}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise StoreError(f"--name {name!r}: use letters, digits, dots, dashes and underscores.")
        folder = Path(runs_dir).resolve() / name
        _clear_torn_creation(folder)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise StoreError(
                f"{folder} exists already: go on with `evolve resume {name}`, or choose another --name."
            ) from None
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}; choose another --runs-dir.") from None
        store: Store | None = None
        try:
            prepared = prepare(config, folder)
            store = Store(config.store.url or default_url(folder), name, create=True)
            now = datetime.now(UTC).isoformat()
            state = State(
                status="interrupted",
                stop_reason=None,
                seconds=0.0,
                plan=prepared.plan,
                sittings=(),
                changes=(),
                versions=versions(),
                warnings=(),
                fingerprints=dict(prepared.fingerprints),
                score_bounds=config.fitness.score_bounds,
                created=now,
            )
            # `auto` may mean another engine on the machine that resumes, and engines differ in their last digits.
            workers = config.workers.model_copy(update={"engine": prepared.spec.engine})
            document = config.model_copy(update={"workers": workers}).model_dump(mode="json")
            store.describe({"config": document, "plan": prepared.plan.to_dict(), "versions": state.versions})
            (folder / "transcripts").mkdir()
            run = cls(folder, state, store)
            run._write_config(document)
            run.save()
        except BaseException:
            if store is not None:
                store.delete()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        run._prepared = prepared
        return run

    @classmethod
    def open(cls, name: str, *, runs_dir: Path | str = "runs") -> Run:
        """Open a run that exists.

        Raises:
            StoreError: there is no such run, or its files cannot be read.
        """
        folder = Path(runs_dir).resolve() / name
        if not (folder / "run.json").is_file():
            known = ", ".join(run_names(runs_dir)) or "none"
            raise StoreError(f"no run named {name} in {folder.parent}; there: {known}. Is --runs-dir right?")
        try:
            data = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            state = State(
                **{
                    **data,
                    "plan": Plan(**data["plan"]),
                    "sittings": tuple(data["sittings"]),
                    "changes": tuple(data["changes"]),
                    "warnings": tuple(data["warnings"]),
                    "score_bounds": tuple(data["score_bounds"]),
                }
            )
            url = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["store"]["url"]
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            raise StoreError(
                f"{folder}: run.json or config.yaml cannot be read ({type(error).__name__}: {error}); another version "
                "of this tool wrote it, or it is damaged. Open it with the version that made it."
            ) from None
        return cls(folder, state, Store(url or default_url(folder), name))

    def execute(
        self,
        evaluator: Evaluator | None = None,
        *,
        progress: Progress | None = None,
        interrupt: Interrupt | None = None,
    ) -> None:
        """Run, or go on where the run stopped. Does nothing to a finished run.

        Args:
            evaluator: what evaluates; ``None``: the Ray workers and the scorer of the config.
            progress: who watches.
            interrupt: a wish to stop after what is in flight; ``None``: KeyboardInterrupt stops at once.

        Raises:
            StoreError: another driver holds the run.
            RunStopped: a failure stopped it; resumable.
            KeyboardInterrupt: passed on after everything finished was recorded; resumable.
        """
        from evolve.execution import execute

        with self._held():
            if self.state.status != "finished":
                execute(self, evaluator, progress or Silent(), interrupt or Interrupt())

    def change(self, overrides: Sequence[str]) -> dict[str, tuple[Any, Any]]:
        """Change settings of a run that exists, a finished one too: it is then resumable.

        Args:
            overrides: ``dotted.path=value``, as for a new run.

        Returns:
            What changed: dotted path to (old, new) value; empty where it was all so already.

        Raises:
            ConfigError: a value that is not allowed, or a change that would alter the past.
            StoreError: another driver holds the run.
        """
        from evolve.changes import changed_settings
        from evolve.config import load_config

        with self._held():
            config = load_config(self.folder / "config.yaml", overrides)
            found = changed_settings(self.config, config)
            if not found:
                return found
            asked = self.state.plan
            rows = self.store.summaries("search")
            within = [row for row in rows if row.index is not None and row.index < asked.popsize]
            plan = extend_plan(
                asked,
                max_fevals=config.budget.max_fevals if "budget.max_fevals" in found else None,
                generations=config.budget.generations if "budget.generations" in found else None,
                begun=max((row.generation or 0 for row in within), default=-1) + 1,
                apart=len(rows) - len(within),
                top_k=config.finalists.top_k,
            )
            budget = config.budget.model_copy(
                update={"max_fevals": plan.max_fevals, "popsize": plan.popsize, "generations": None}
            )
            self.config = config.model_copy(update={"budget": budget})
            self._prepared = None
            at = datetime.now(UTC).isoformat(timespec="seconds")
            entry = {"at": at, "settings": {path: list(values) for path, values in found.items()}}
            # The plan first: a config that was not written any more is changed again by the same command.
            self.save(plan=plan, status="interrupted", stop_reason=None, changes=(*self.state.changes, entry))
            self._write_config(self.config.model_dump(mode="json"))
        return found

    def prepared(self) -> Prepared:
        """The checked config; checks it where that has not been done in this process.

        Raises:
            UserMistake: it cannot work any more, or what is asked has changed since the run was created.
        """
        if self._prepared is None:
            from evolve.prepare import prepare

            prepared = prepare(self.config, self.folder, plan=self.state.plan)
            self.check_unchanged("models", prepared.fingerprints["models"])
            self.check_unchanged("questions", prepared.fingerprints["questions"])
            self._prepared = prepared
        return self._prepared

    def check_unchanged(self, what: Literal["models", "questions"], fingerprint: str) -> None:
        """Refuse to go on with something else than the run was created with.

        Raises:
            StoreError: naming what changed.
        """
        if fingerprint == self.state.fingerprints[what]:
            return
        changed = {
            "models": "the weights of a parent",
            "questions": "the prompts, the chat template, a tokenizer, the rubric or the generation settings",
        }[what]
        raise StoreError(
            f"run {self.name}: {changed} changed since it was created, so nothing new could be compared with what is "
            "recorded. Restore them, or start a new run."
        )

    def save(self, **changes: Any) -> None:
        """Change the state and write it durably."""
        self.state = replace(self.state, **changes)
        data = {**{k: getattr(self.state, k) for k in State.__dataclass_fields__}, "plan": self.state.plan.to_dict()}
        write_durably(self.folder / "run.json", json.dumps(data, indent=2, ensure_ascii=False))

    def _write_config(self, document: dict[str, Any]) -> None:
        write_durably(self.folder / "config.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The only driver of the run, with everything as it is now on the disk.

        The lock is the kernel's, on an open file: that of a dead process does not exist any more.
        """
        lock = FileLock(self.folder / "driver.lock")
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            raise StoreError(f"run {self.name} is being driven by {self._holder()}.") from None
        try:
            # Another driver may have gone on with the run since it was opened here.
            fresh = Run.open(self.name, runs_dir=self.folder.parent)
            self.state, self.store = fresh.state, fresh.store
            since = datetime.now(UTC).isoformat(timespec="seconds")
            holder = {"host": platform.node(), "pid": os.getpid(), "since": since}
            write_durably(self.folder / "driver.json", json.dumps(holder))
            yield
        finally:
            (self.folder / "driver.json").unlink(missing_ok=True)
            lock.release()

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
            holder = json.loads((self.folder / "driver.json").read_text())
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError):
            return "another process"


def run_names(runs_dir: Path | str = "runs") -> list[str]:
    """Names of the runs in a folder, oldest first."""
    found = Path(runs_dir).glob("*/run.json")
    return [path.parent.name for path in sorted(found, key=lambda p: (p.parent / "config.yaml").stat().st_mtime)]


def resume_command(run: Run) -> str:
    """What to type to go on with a run, from the present folder."""
    runs_dir = run.folder.parent
    return f"evolve resume {run.name}" + ("" if runs_dir == Path("runs").resolve() else f" --runs-dir {runs_dir}")


def _clear_torn_creation(folder: Path) -> None:
    """Remove what a creation that was killed has left: it evaluated nothing, and nothing of anybody else's is there."""
    if (folder / "run.json").exists() or not folder.is_dir():
        return
    own = ("skeleton", ".skeleton-", "history.db", "transcripts", "config.yaml", "run.json.tmp")
    evaluated = any((folder / "transcripts").glob("*.jsonl"))
    if not evaluated and all(entry.name.startswith(own) for entry in folder.iterdir()):
        shutil.rmtree(folder)
