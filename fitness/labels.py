"""Reads what people thought of answers: the CSV file of ``evolve judge check CONFIG --labels labels.csv``.

A row is one answer as one rater saw it. The question is ``prompt_id`` (a prompt of the config) or ``prompt`` (the
user's text itself, then optionally ``system`` and ``reference``); ``answer`` is the text; the labels are ``score`` for
the whole, a column per criterion of the rubric, or both. ``rater`` tells the people apart, ``finish`` (``stop`` or
``length``) says how the answer ended. A rater may leave labels empty, but not all of a row.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fitness.errors import ScoringSetupError
from fitness.explain import suggestion
from fitness.responses import Finish

_COLUMNS = ("prompt_id", "prompt", "system", "reference", "answer", "finish", "rater", "score")


@dataclass(frozen=True)
class Labelled:
    """One answer with its labels.

    Attributes:
        prompt_id: a prompt of the config, or ``None``, and then ``prompt`` is the question.
        prompt: the user's text, ``None`` where ``prompt_id`` names it.
        system: the system message before ``prompt``, where there is one.
        references: right answers to ``prompt``.
        answer: the text that was labelled, possibly empty.
        finish: how the answer ended.
        labels: by ``score`` or the name of a criterion, the label of each rater (``""`` for one without a name).
        where: ``file:line`` of its first row.
    """

    prompt_id: str | None
    prompt: str | None
    system: str | None
    references: tuple[str, ...]
    answer: str
    finish: Finish
    labels: Mapping[str, Mapping[str, float]]
    where: str


def read_labels(path: Path, *, criteria: Sequence[str], scale: tuple[float, float]) -> list[Labelled]:
    """Reads a file of labels.

    Args:
        path: a CSV file in UTF-8, its first line the names of the columns.
        criteria: names of the rubric's criteria, each a possible column unless it is called like one of the others.
        scale: the worst and the best label: those of the rubric, or labels and scores could not be compared.

    Returns:
        One per distinct question and answer, in the order of the file.

    Raises:
        ScoringSetupError: the file cannot be read, or a column or a cell is not as the module's docstring says.
    """
    names = ("score", *(name for name in criteria if name not in _COLUMNS))
    questions: dict[tuple[str | None, ...], str] = {}
    labels: dict[tuple[str | None, ...], dict[str, dict[str, float]]] = {}
    written: dict[tuple[object, ...], str] = {}
    for where, row in _rows(path, names):
        key = (*_question(where, row), row["answer"], _finish(where, row))
        rater = row.get("rater", "").strip()
        found = {name: _label(where, name, row[name], scale) for name in names if row.get(name, "").strip()}
        if not found:
            raise ScoringSetupError(
                f"{where}: no label; give a number in {_listed(name for name in names if name in row)}, or drop the row"
            )
        questions.setdefault(key, where)
        for name, label in found.items():
            other = written.setdefault((*key, name, rater), where)
            if other != where:
                who = f"rater {rater!r}" if rater else "a rater without a name"
                raise ScoringSetupError(
                    f"{where}: {name} of this answer by {who} again, first in {other}; drop one of the rows, or tell"
                    " the raters apart in the column rater"
                )
            labels.setdefault(key, {}).setdefault(name, {})[rater] = label
    if not questions:
        raise ScoringSetupError(f"{path}: no labels below the names of the columns; add a row per labelled answer")
    return [_labelled(key, labels[key], where) for key, where in questions.items()]


def _labelled(key: tuple[str | None, ...], labels: Mapping[str, Mapping[str, float]], where: str) -> Labelled:
    prompt_id, prompt, system, reference, answer, finish = key
    return Labelled(
        prompt_id=prompt_id,
        prompt=prompt,
        system=system,
        references=() if reference is None else (reference,),
        answer=answer or "",
        finish="length" if finish == "length" else "stop",
        labels=labels,
        where=where,
    )


def _rows(path: Path, labels: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows as (file:line, cell by column)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ScoringSetupError(f"{path}: is not UTF-8 at byte {error.start}; save it as CSV in UTF-8") from error
    except OSError as error:
        raise ScoringSetupError(f"--labels: cannot read {path}: {error.strerror}") from error
    # Strict: an open quote would else swallow the rest of the file as one answer.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ScoringSetupError(f'{where}: not CSV: {error}; quote texts with " and double a " inside') from error
        if cells is None:
            break
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns = _columns(where, cells, labels)
        elif len(cells) != len(columns):
            raise ScoringSetupError(
                f"{where}: {len(cells)} cells under {len(columns)} columns; quote a text that holds a comma, a quote"
                " or a line's end"
            )
        else:
            yield where, dict(zip(columns, cells, strict=True))
    if columns is None:
        raise ScoringSetupError(f"{path}: is empty; its first line must name the columns, such as prompt,answer,score")


def _columns(where: str, cells: Sequence[str], labels: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise ScoringSetupError(f"{where}: the columns must be separated by commas; save the file as CSV with commas")
    known = dict.fromkeys((*_COLUMNS, *labels))
    for name in names:
        if name not in known:
            raise ScoringSetupError(f"{where}: unknown column {name!r}, {suggestion(name, known)}")
        if names.count(name) > 1:
            raise ScoringSetupError(f"{where}: column {name!r} stands there {names.count(name)} times; keep one")
    if "answer" not in names:
        raise ScoringSetupError(f"{where}: no column answer; add one with the text that was labelled")
    if not {"prompt_id", "prompt"} & set(names):
        raise ScoringSetupError(
            f"{where}: no question; add a column prompt_id (a prompt of the config) or prompt (the user's text)"
        )
    if not set(labels) & set(names):
        raise ScoringSetupError(f"{where}: no label; add at least one of the columns {_listed(labels)}")
    return names


def _question(where: str, row: Mapping[str, str]) -> tuple[str | None, ...]:
    """prompt_id, prompt, system, reference; ``None`` for a blank one."""
    prompt_id, *texts = (row.get(name, "") for name in _COLUMNS[:4])
    question = (prompt_id.strip() or None, *(text if text.strip() else None for text in texts))
    if question[0] is None and question[1] is None:
        raise ScoringSetupError(f"{where}: no question; fill prompt_id or prompt")
    if question[0] is not None:
        for name, text in zip(_COLUMNS[1:4], question[1:], strict=True):
            if text is not None:
                raise ScoringSetupError(
                    f"{where}: prompt_id and {name} are both filled, and the prompt of the config has its own; empty"
                    " one of them"
                )
    return question


def _finish(where: str, row: Mapping[str, str]) -> str:
    finish = row.get("finish", "").strip() or "stop"
    if finish not in ("stop", "length"):
        raise ScoringSetupError(f"{where}: finish is {finish!r}; write stop or length, or nothing for stop")
    return finish


def _label(where: str, name: str, cell: str, scale: tuple[float, float]) -> float:
    try:
        label = float(cell)
    except ValueError:
        label = math.nan
    if not math.isfinite(label):
        raise ScoringSetupError(f"{where}: {name} is {cell.strip()!r}; write a number such as 4 or 4.5, or nothing")
    low, high = scale
    if not low <= label <= high:
        raise ScoringSetupError(
            f"{where}: {name} is {label:g}, and the scale of the rubric is {low:g} to {high:g}; bring the labels to it"
        )
    return label


def _listed(names: Sequence[str] | Iterator[str]) -> str:
    return ", ".join(names)
