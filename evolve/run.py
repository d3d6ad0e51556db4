"""A run: a folder with the resolved config, the plan, the history and the transcripts; created, executed, resumed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from evolve.environment import versions
from evolve.errors import StoreError
from evolve.hold import held, is_held
from evolve.interrupt import Interrupt
from evolve.outcome import write_durably
from evolve.progress import Progress, Silent
from evolve.state import STATE_FILE, State, Status
from evolve.store import Store, default_url

# Looking at a run (show, history, runs) must not wait for torch, mergekit and Ray to be imported, so what needs
# them is imported where it is used.
if TYPE_CHECKING:
    from evolve.config import RunConfig
    from evolve.evaluator import Evaluator
    from evolve.prepare import Prepared


# What a creation makes, in the order of its making, before there is a run.
_OWN = ("driver.", "skeleton", ".skeleton-", "history.db", "transcripts", "config.yaml", f"{STATE_FILE}.tmp")


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
        if self.state.status == "running" and not is_held(self.folder):
            return "interrupted"
        return self.state.status

    @classmethod
    def create(
        cls,
        config: RunConfig,
        *,
        runs_dir: Path | str = "runs",
        name: str | None = None,
        warnings: Sequence[str] = (),
    ) -> Run:
        """Check what must hold, freeze the plan, and make the run's folder. Starts no engine.

        Args:
            config: the run config; ``evolve.check.check`` looks at it more closely.
            runs_dir: folder of the runs.
            name: of the run; by default method and time.
            warnings: what a reader of the results should know.

        Raises:
            UserMistake: the config cannot work, or the name is taken.
        """
        from evolve.judging import cautions_of
        from evolve.prepare import prepare

        folder = new_folder(runs_dir, name, config)
        name = folder.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}; choose another --runs-dir.") from None
        with held(folder):
            _refuse_taken(folder)  # by somebody who was faster
            _clear(folder)  # of what a creation that was killed has left
            store: Store | None = None
            try:
                prepared = prepare(config, folder)
                store = Store(config.store.url or default_url(folder), name, create=True)
                state = State(
                    status="interrupted",
                    stop_reason=None,
                    seconds=0.0,
                    plan=prepared.plan,
                    sittings=(),
                    changes=(),
                    versions=versions(),
                    warnings=(*cautions_of(config), *warnings),
                    fingerprints=dict(prepared.fingerprints),
                    judges={},
                    score_bounds=config.fitness.score_bounds,
                    created=datetime.now(UTC).isoformat(),
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
                with suppress(Exception):  # the first error is the one to tell
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
        if not (folder / STATE_FILE).is_file():
            known = ", ".join(run_names(runs_dir)) or "none"
            raise StoreError(f"no run named {name} in {folder.parent}; there: {known}. Is --runs-dir right?")
        try:
            state = State.read(folder)
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
        from evolve.changes import OF_THE_PLAN, cautions, changed_plan, changed_settings
        from evolve.config import parse_config, read_yaml

        with self._held():
            stored = read_yaml(self.folder / "config.yaml")
            config = parse_config(stored, source=f"run {self.name}, --set", overrides=overrides)
            found = changed_settings(self.config, config, judged=len(self.store) > 0)
            plan = changed_plan(
                self.state.plan,
                config,
                found,
                searched=self.store.summaries("search"),
                finalists=len(self.store.summaries("finalist")),
            )
            if plan == self.state.plan and found.keys() <= OF_THE_PLAN:
                return {}
            budget = config.budget.model_copy(
                update={"max_fevals": plan.max_fevals, "popsize": plan.popsize, "generations": None}
            )
            self.config = config.model_copy(update={"budget": budget})
            self._prepared = None
            entry = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "settings": {path: list(values) for path, values in found.items()},
            }
            # The plan first: a config that was not written any more is changed again by the same command.
            self.save(
                plan=plan,
                status="interrupted",
                stop_reason=None,
                changes=(*self.state.changes, entry),
                warnings=tuple(dict.fromkeys([*self.state.warnings, *cautions(found)])),
            )
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
        self.state.write(self.folder)

    def _write_config(self, document: dict[str, Any]) -> None:
        write_durably(self.folder / "config.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The only driver of the run, with everything as it is now on the disk."""
        with held(self.folder):
            # Another driver may have gone on with the run since it was opened here.
            fresh = Run.open(self.name, runs_dir=self.folder.parent)
            if fresh.state.changes != self.state.changes:
                self.__dict__.pop("config", None)
                self._prepared = None
            self.state, self.store = fresh.state, fresh.store
            yield


def new_folder(runs_dir: Path | str, name: str | None, config: RunConfig) -> Path:
    """Where a run would lie that does not exist yet; makes nothing.

    Raises:
        StoreError: the name is no name, or taken.
    """
    name = name or f"{config.genome.merge_method}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise StoreError(f"--name {name!r}: use letters, digits, dots, dashes and underscores.")
    folder = Path(runs_dir).resolve() / name
    _refuse_taken(folder)
    return folder


def run_names(runs_dir: Path | str = "runs") -> list[str]:
    """Names of the runs in a folder, oldest first."""
    folders = [path.parent for path in Path(runs_dir).glob(f"*/{STATE_FILE}")]
    return [folder.name for folder in sorted(folders, key=_created)]


def _created(folder: Path) -> str:
    try:
        return State.read(folder).created
    except (OSError, ValueError, TypeError, KeyError):  # damaged; who opens it will say so
        return ""


def resume_command(run: Run) -> str:
    """What to type to go on with a run, from the present folder."""
    runs_dir = run.folder.parent
    return f"evolve resume {run.name}" + ("" if runs_dir == Path("runs").resolve() else f" --runs-dir {runs_dir}")


def _refuse_taken(folder: Path) -> None:
    """A name is free where there is nothing, or what a creation that was killed has left: that evaluated nothing."""
    if not folder.exists():
        return
    name = folder.name
    transcripts = any((folder / "transcripts").glob("*.jsonl"))
    if transcripts or (folder / STATE_FILE).exists() or any(not e.name.startswith(_OWN) for e in folder.iterdir()):
        raise StoreError(f"{folder} exists already: go on with `evolve resume {name}`, or choose another --name.")


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif not entry.name.startswith("driver."):
            entry.unlink()
