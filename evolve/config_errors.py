"""Says in one line per problem what is wrong with a config: the dotted path, the value, what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fitness.explain import Place, locate, suggestion


def explain_config(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """One line per wrong place: the dotted path, the value, what is allowed.

    Args:
        error: what pydantic raised.
        model: the config that was being read.
        source: the file, named first in every line.
    """
    problems = error.errors(include_url=False)
    lines = []
    for problem in problems:
        loc = problem["loc"]
        if problem["type"] == "too_short" and any(p["loc"][: len(loc)] == loc != p["loc"] for p in problems):
            continue  # pydantic counts the entries that were right
        place = locate(loc, model)
        lines.append(f"{source}: {place.path}{_problem(problem, place)}")
    return "\n".join(dict.fromkeys(lines))


# What was expected, by pydantic's type of error (https://docs.pydantic.dev/latest/errors/validation_errors/).
_EXPECTED = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "a list of at least {min_length} is needed",
    "string_too_short": "must not be empty",
    "literal_error": "allowed are {expected}",
    "invalid_key": "a key must be text; put it in quotes",
    "path_type": "expected a path",
    "tuple_type": "expected a list",
    "string_type": "expected text",
} | {
    kind: f"expected {what}"
    for what, kinds in {
        "a block of settings": ("model_type", "model_attributes_type", "dict_type"),
        "a whole number": ("int_type", "int_parsing", "int_from_float"),
        "a number": ("float_type", "float_parsing"),
        "true or false": ("bool_type", "bool_parsing"),
    }.items()
    for kind in kinds
}


def _problem(problem: ErrorDetails, place: Place) -> str:
    """What comes after the place."""
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f": unknown key; {suggestion(str(problem['loc'][-1]), place.known)}"
    if kind == "missing":
        return ": missing, and it has no default."
    if kind == "union_tag_not_found":
        return f".{context['discriminator'].strip(_QUOTE)}: missing in {shortened(given)}."
    if kind == "union_tag_invalid":
        known = suggestion(context["tag"], _quoted(context["expected_tags"]))
        return f".{context['discriminator'].strip(_QUOTE)}: got {context['tag']!r}; {known}"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error" and isinstance(given, Mapping):
        return f": {message.rstrip('.')}."  # the check of a whole block says itself which values it means
    if kind in _EXPECTED:
        message = _EXPECTED[kind].format(**context)
    near = difflib.get_close_matches(str(given), _quoted(context.get("expected", "")), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f": got {shortened(given)}: {message[0].lower()}{message[1:].rstrip('.')}{hint}"


_QUOTE = "'"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def shortened(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
