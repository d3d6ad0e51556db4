"""The history: an Optuna study of the search, and beside it one of baselines and finalists.

A row is inserted finished (``add_trial(create_trial(...))``), so that a crash leaves a row whole or not at all.
Parameters are mergekit's, in its units, so that ``optuna-dashboard``'s plots mean something; the genotype and
everything else stand in the trial's user attributes. https://optuna.readthedocs.io/en/stable/reference/storages.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from evolve.errors import StoreError
from evolve.evaluation import Evaluation

if TYPE_CHECKING:
    from evolve.genome import Coordinate

optuna.logging.set_verbosity(optuna.logging.WARNING)


def default_url(folder: Path) -> str:
    """SQLite in the run's folder: a commit is atomic and durable, and a dead process leaves no lock behind."""
    return f"sqlite:///{folder.resolve() / 'history.db'}"


class Store:
    """Rows in, rows out; keeps them all in memory too, so that reading costs nothing during a run.

    Args:
        url: an Optuna storage URL.
        name: of the run; its search is the study ``name``, the rest is ``name/others``.

    Raises:
        StoreError: the storage cannot be opened.
    """

    def __init__(self, url: str, name: str, *, create: bool = False) -> None:
        try:
            storage = optuna.storages.RDBStorage(url)
            opened = [self._open(storage, study, create=create) for study in (name, f"{name}/others")]
        except optuna.exceptions.DuplicatedStudyError:
            raise StoreError(f"store.url: {url} has a study named {name} already; choose another --name.") from None
        except KeyError:
            raise StoreError(f"store.url: {url} has no study named {name}.") from None
        except Exception as error:  # whatever SQLAlchemy and the database driver raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreError(f"store.url: {url} cannot be opened: {reason}") from error
        self._search, self._others = opened
        self._rows: dict[str, Evaluation] = {}
        self._counts = {True: 0, False: 0}
        for study in (self._search, self._others):
            for trial in study.get_trials(deepcopy=False):
                row = Evaluation.from_dict(trial.user_attrs["evaluation"], trial.number)
                self._rows[row.candidate.key] = row
                self._counts[study is self._search] += 1

    @staticmethod
    def _open(storage: Any, study: str, *, create: bool) -> Any:
        if create:
            return optuna.create_study(storage=storage, study_name=study, direction="maximize")
        return optuna.load_study(storage=storage, study_name=study)

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Attach JSON-able facts (config, plan, versions) to the study of the search."""
        for key, value in facts.items():
            self._search.set_user_attr(key, value)

    def add(self, row: Evaluation, coordinates: Sequence[Coordinate], values: Mapping[str, float]) -> Evaluation:
        """Record a finished evaluation; durable when this returns.

        Args:
            row: the evaluation; its key must be new.
            coordinates: of the genome.
            values: the decoded coordinates by name, empty for what has no genotype.

        Raises:
            ValueError: the key is recorded already.
        """
        c = row.candidate
        if c.key in self._rows:
            raise ValueError(f"evaluation {c.key} is recorded already")
        study = self._search if c.kind == "search" else self._others
        distributions: dict[str, BaseDistribution] = {
            p.name: FloatDistribution(p.low, p.high, log=p.scale == "log") for p in coordinates if p.name in values
        }
        trial = create_trial(
            state=TrialState.FAIL if row.value is None else TrialState.COMPLETE,
            value=row.value,
            params=dict(values),
            distributions=distributions,
            user_attrs={
                "kind": c.kind,
                "label": c.label,
                "split": c.split,
                "generation": c.generation,
                "index": c.index,
                "recipe_hash": c.recipe.hash,
                "evaluation": row.to_dict(),
            },
        )
        study.add_trial(trial)
        number = self._counts[c.kind == "search"]
        self._counts[c.kind == "search"] += 1
        recorded = Evaluation(c, row.result, row.seconds, row.transcript, number)
        self._rows[c.key] = recorded
        return recorded

    def get(self, key: str) -> Evaluation | None:
        """The row of a key."""
        return self._rows.get(key)

    def rows(self, *kinds: str) -> list[Evaluation]:
        """All rows or those of some kinds: the search's first, each study's in the order recorded."""
        chosen = [row for row in self._rows.values() if not kinds or row.candidate.kind in kinds]
        return sorted(chosen, key=lambda row: (row.candidate.kind != "search", row.number))
