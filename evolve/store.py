"""The history: an Optuna study of the search, and beside it one of baselines and finalists.

A row is inserted finished, in one transaction, so that a crash leaves it whole or not at all. Parameters are
mergekit's, in its units, so that ``optuna-dashboard``'s plots mean something; everything else stands in the trial's
user attributes, the recipe in one of its own, because it is long and seldom read.
https://optuna.readthedocs.io/en/stable/reference/storages.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy import column, select, table
from sqlalchemy.exc import SQLAlchemyError

from evolve.errors import RunStopped, StoreError
from evolve.evaluation import Evaluation, Summary
from evolve.storage import default_url, masked, masked_within, open_storage, reason
from workers.job import Share

if TYPE_CHECKING:
    from evolve.genome import Coordinate

__all__ = ["Store", "default_url"]

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Optuna's tables; its own reader builds objects for every parameter of every trial, a hundred times slower.
_trials = table("trials", column("trial_id"), column("study_id"))
_attributes = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))

_PAGE = 128  # rows read at once
_PAGES = 4  # kept; a generation in the order of its places is recorded in the order of finishing


class _Row(NamedTuple):
    summary: Summary
    number: int


@dataclass
class _Study:
    """What is known of one study.

    Attributes:
        id: Optuna's.
        trials: Optuna's trial id of every row, by number.
        rows: by key, in the order recorded.
    """

    id: int
    trials: list[int] = field(default_factory=list)
    rows: dict[str, _Row] = field(default_factory=dict)

    def append(self, trial: int, summary: Summary) -> int:
        number = len(self.trials)
        if self.rows.setdefault(summary.key, _Row(summary, number)).number == number:
            self.trials.append(trial)
        return number


class Store:
    """Rows in, rows out. Summaries stay in memory, rows are read when asked for.

    Args:
        url: of the database: SQLite, PostgreSQL or MySQL.
        name: of the run; its search is the study ``name``, the rest is ``name/others``.
        create: make the studies rather than open them.

    Raises:
        StoreError: the database cannot be opened, or has or lacks a run of that name.
    """

    def __init__(self, url: str, name: str, create: bool = False) -> None:
        self._url = url
        self._storage = open_storage(url)
        self._coordinates: tuple[Coordinate, ...] = ()
        self._distributions: dict[str, BaseDistribution] = {}
        self._pages: dict[tuple[int, int], dict[int, dict[str, str]]] = {}
        try:
            self._search, self._others = self._create(name) if create else self._open(name)
            for study in (self._search, self._others):
                self._read_summaries(study)
        except (optuna.exceptions.OptunaError, SQLAlchemyError) as error:
            raise StoreError(f"store.url: {masked(url)} cannot be opened: {reason(error, url)}") from None

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Attach JSON-able facts (config, plan, versions) to the study of the search; passwords are masked."""
        for key, value in facts.items():
            self._storage.set_study_user_attr(self._search.id, key, masked_within(value, self._url))

    def add(self, row: Evaluation, coordinates: Sequence[Coordinate], values: Mapping[str, float]) -> Evaluation:
        """Record a finished evaluation; durable when this returns.

        Args:
            row: the evaluation; its key must be new.
            coordinates: of the genome.
            values: the decoded coordinates by name, empty for what has no genotype.

        Returns:
            The row with its number.

        Raises:
            ValueError: the key is recorded already.
            RunStopped: the database is full, locked or gone; the row may or may not be in it, never a part of it.
        """
        c = row.candidate
        if c.key in self:
            raise ValueError(f"evaluation {c.key} is recorded already")
        data = row.to_dict() | {"recipe_hash": c.recipe.hash, "mask_seed": c.recipe.mask_seed}
        del data["recipe"]
        distributions = self._distributions_of(coordinates)
        trial = create_trial(
            state=TrialState.FAIL if row.value is None else TrialState.COMPLETE,
            value=row.value,
            params=dict(values),
            distributions={name: distributions[name] for name in values},
            # As text, Optuna does not copy it part by part, and it can be pasted into a file for mergekit.
            user_attrs={
                "label": c.label,
                "generation": c.generation,
                "evaluation": data,
                "recipe": json.dumps(dict(c.recipe.config), ensure_ascii=False),
            },
        )
        study = self._search if c.kind == "search" else self._others
        try:
            trial_id = self._storage.create_new_trial(study.id, template_trial=trial)
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError, KeyError) as error:  # KeyError: study deleted
            raise RunStopped(
                f"{c.key} cannot be recorded in {masked(self._url)}: {reason(error, self._url)}. "
                "What was recorded before is safe."
            ) from error
        return replace(row, number=study.append(trial_id, _summary(data)))

    def get(self, key: str) -> Evaluation | None:
        """The row of a key."""
        study = self._search if key in self._search.rows else self._others
        if key not in study.rows:
            return None
        number = study.rows[key].number
        texts = self._texts(study, number)
        data = json.loads(texts["evaluation"])
        config = json.loads(json.loads(texts["recipe"]))
        return Evaluation.from_dict({**data, "recipe": {"config": config, "mask_seed": data["mask_seed"]}}, number)

    def __contains__(self, key: str) -> bool:
        """Whether a key is recorded."""
        return key in self._search.rows or key in self._others.rows

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._search.rows) + len(self._others.rows)

    def rows(self, *kinds: str) -> Iterator[Evaluation]:
        """All rows or those of some kinds, one at a time: the search's first, each study's in the order recorded."""
        for summary in self.summaries(*kinds):
            row = self.get(summary.key)
            assert row is not None
            yield row

    def summaries(self, *kinds: str) -> list[Summary]:
        """All rows or those of some kinds in short, in the order of :meth:`rows`; reads nothing."""
        every = chain(self._search.rows.values(), self._others.rows.values())
        return [row.summary for row in every if not kinds or row.summary.kind in kinds]

    def delete(self) -> None:
        """Remove both studies.

        Raises:
            RunStopped: the database does not allow it, or is gone.
        """
        try:
            for study in (self._others, self._search):  # the name is free when all is gone
                self._storage.delete_study(study.id)
        except (optuna.exceptions.OptunaError, SQLAlchemyError, KeyError) as error:
            raise RunStopped(f"nothing can be removed from {masked(self._url)}: {reason(error, self._url)}.") from error

    def close(self) -> None:
        """Gives the connections back."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _create(self, name: str) -> list[_Study]:
        made: list[_Study] = []
        for study in _names(name):
            try:
                made.append(_Study(self._storage.create_new_study([StudyDirection.MAXIMIZE], study)))
            except optuna.exceptions.DuplicatedStudyError:
                for one in made:
                    self._storage.delete_study(one.id)
                raise StoreError(
                    f"store.url: {masked(self._url)} has a study named {study} already; choose another --name."
                ) from None
        return made

    def _open(self, name: str) -> list[_Study]:
        try:
            return [_Study(self._storage.get_study_id_from_name(study)) for study in _names(name)]
        except KeyError:
            raise StoreError(f"store.url: {masked(self._url)} has no study named {name}.") from None

    def _distributions_of(self, coordinates: Sequence[Coordinate]) -> Mapping[str, BaseDistribution]:
        if tuple(coordinates) != self._coordinates:
            self._coordinates = tuple(coordinates)
            self._distributions = {c.name: FloatDistribution(c.low, c.high, log=c.scale == "log") for c in coordinates}
        return self._distributions

    def _read_summaries(self, study: _Study) -> None:
        query = (
            select(_trials.c.trial_id, _attributes.c.value_json)
            .join(_attributes, _attributes.c.trial_id == _trials.c.trial_id)
            .where(_trials.c.study_id == study.id, _attributes.c.key == "evaluation")
            .order_by(_trials.c.trial_id)
        )
        with self._storage.engine.connect() as connection:
            for trial, text in connection.execution_options(yield_per=1000).execute(query):
                data = json.loads(text)
                if isinstance(data, dict) and "recipe_hash" in data:  # else somebody's own trial
                    study.append(trial, _summary(data))

    def _texts(self, study: _Study, number: int) -> dict[str, str]:
        """The long attributes of a row, read by the page, because rows are mostly asked for in their order."""
        place, trial = (study.id, number // _PAGE), study.trials[number]
        if trial not in self._pages.get(place, {}):
            self._pages.pop(place, None)
            trials = study.trials[place[1] * _PAGE : (place[1] + 1) * _PAGE]
            query = select(_attributes.c.trial_id, _attributes.c.key, _attributes.c.value_json).where(
                _attributes.c.trial_id.in_(trials), _attributes.c.key.in_(("evaluation", "recipe"))
            )
            page: dict[int, dict[str, str]] = {}
            with self._storage.engine.connect() as connection:
                for found, key, text in connection.execute(query):
                    page.setdefault(found, {})[key] = text
            self._pages[place] = page
            if len(self._pages) > _PAGES:
                del self._pages[next(iter(self._pages))]
        return self._pages[place][trial]


def _names(name: str) -> tuple[str, str]:
    return name, f"{name}/others"


def _summary(data: Mapping[str, Any]) -> Summary:
    """From the plain data of a row; words that every row has are kept once."""
    fitness = data["result"].get("fitness")
    return Summary(
        key=data["key"],
        kind=intern(data["kind"]),  # type: ignore[arg-type]
        split=intern(data["split"]),  # type: ignore[arg-type]
        generation=data["generation"],
        index=data["index"],
        recipe_hash=data["recipe_hash"],
        value=fitness["value"] if fitness else None,
        chars=fitness["parts"].get("observed.chars") if fitness else None,
        length_correlation=fitness["length_correlation"] if fitness else None,
        seconds={intern(stage): seconds for stage, seconds in data["seconds"].items()},
        shares=tuple(Share(**share) for share in data["shares"]),
    )
