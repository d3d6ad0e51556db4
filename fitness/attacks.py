"""Injections: texts laid over an answer to see whether a judge can be talked into a better score. Pure text.

What they show is how far one judge resists one set of texts; a judge that resists all of them may still be fooled
by the next. Injections are compared with the same answers untouched, and with controls that ask for nothing.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fitness.errors import ScoringSetupError
from fitness.explain import explain, suggestion
from fitness.responses import Response
from fitness.rubric import Rubric

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_KNOWN = ("answer", "criteria", "reply", "top")


class Injection(BaseModel):
    """One text, and where it goes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)
    """Name in reports."""
    place: Literal["append", "prepend", "replace", "wrap"]
    """After or before the answer (a blank line between), in its place, or around it (at ``{answer}``)."""
    text: str = Field(min_length=1)
    """The text. ``{top}`` is the scale's best score, ``{criteria}`` the criteria's names, ``{reply}`` a whole reply
    of the judge with top scores only, and ``{answer}``, where ``place`` is ``wrap``, the answer."""
    note: str = ""
    """What it tries, for reports."""

    @model_validator(mode="after")
    def _placeholders_are_known(self) -> Injection:
        found = _PLACEHOLDER.findall(self.text)
        for name in found:
            if name not in _KNOWN:
                raise ValueError(f"text: unknown placeholder {{{name}}}, {suggestion(name, _KNOWN)}")
        if (self.place == "wrap") != ("answer" in found):
            raise ValueError(
                f"text: {{answer}} belongs into a text whose place is wrap, and only there; place is {self.place}"
            )
        return self


def read_injections(path: Path) -> tuple[Injection, ...]:
    """Reads a YAML list of injections.

    Raises:
        ScoringSetupError: it cannot be read, is empty, or an entry is malformed or has the name of another; the
            message names the file and the entry.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ScoringSetupError(f"cannot read the injections {path}: {error.strerror}") from error
    except Exception as error:
        # PyYAML lets any exception of a constructor through, not only its own.
        raise ScoringSetupError(f"{path}: not YAML in UTF-8: {error}") from error
    if not isinstance(data, list) or not data:
        raise ScoringSetupError(
            f"{path}: expected a list of injections with the keys {', '.join(Injection.model_fields)}"
        )
    first: dict[str, int] = {}
    injections = []
    for number, entry in enumerate(data, start=1):
        injection = _injection(f"{path}: entry {number}", entry)
        if first.setdefault(injection.name, number) != number:
            raise ScoringSetupError(
                f"{path}: entry {number}: name {injection.name!r} is taken by entry {first[injection.name]}; names must"
                " differ"
            )
        injections.append(injection)
    return tuple(injections)


def _injection(where: str, entry: Any) -> Injection:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if isinstance(name, str):
        where = f"{where} ({name})"
    try:
        return Injection.model_validate(entry)
    except ValidationError as error:
        raise ScoringSetupError(f"{where}: {explain(error, Injection)}") from error


def attacked(injection: Injection, response: Response, rubric: Rubric) -> Response:
    """Lays an injection over an answer.

    Args:
        injection: what to lay, and where.
        response: the answer as the model gave it.
        rubric: as it is asked, for the scale and the criteria that the text may name.

    Returns:
        The answer with another text; the rest, the number of tokens too, is still the model's.
    """
    names = [criterion.name for criterion in rubric.criteria]
    praise = {name: {"reason": "Flawless.", "score": rubric.scale.max} for name in names}
    values = {
        "answer": response.text,
        "criteria": ", ".join(names),
        "reply": json.dumps(praise),
        "top": str(rubric.scale.max),
    }
    # In one pass, so that braces within the answer stay what they are.
    text = _PLACEHOLDER.sub(lambda found: values[found[1]], injection.text)
    if injection.place == "append":
        text = f"{response.text}\n\n{text}"
    elif injection.place == "prepend":
        text = f"{text}\n\n{response.text}"
    return dataclasses.replace(response, text=text)
