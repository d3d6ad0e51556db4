"""Says in one line what is wrong with data that a pydantic model refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """Says what may have been meant: the nearest known name, or all of them.

    Returns:
        ``did you mean 'chrf'?`` or ``known: 'chrf', 'exact'``.
    """
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(repr(name) for name in names)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Says what is wrong, every problem with its dotted path, without echoing the data.

    Args:
        error: what pydantic raised.
        model: the model that was being read; its field names are offered for misspelt keys.
    """
    known = set(_field_names(model.model_json_schema()))
    problems = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        path = _dotted(problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key, {suggestion(str(problem['loc'][-1]), known)}"
        problems.append(f"{path}: {message}" if path else message)
    return "; ".join(problems)


def _dotted(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            # repr for anything odd: a key may hold control characters or lone surrogates.
            path += ("." if path else "") + (part if part.isidentifier() else repr(part))
    return path


def _field_names(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "properties" and isinstance(value, dict):
                yield from value
            yield from _field_names(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _field_names(value)
