"""Says in one line what is wrong with data that a pydantic model refused."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

Location = Sequence[int | str]


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
    problems = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        place = locate(problem["loc"], model)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key, {suggestion(str(problem['loc'][-1]), place.known)}"
        problems.append(f"{place.path}: {message}" if place.path else message)
    return "; ".join(problems)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the data a problem is.

    Attributes:
        path: dotted, as the user would write it: ``fitness.terms[0].weight``; empty for the whole.
        known: the keys that are known in the block around it.
    """

    path: str
    known: tuple[str, ...]


def locate(location: Location, model: type[BaseModel]) -> Place:
    """Finds a problem's place by walking the model's annotations.

    pydantic's own location also names the member of each union that it tried, which no user wrote; it is left out.

    Args:
        location: ``loc`` of one of pydantic's errors.
        model: the model that was being read.
    """
    path, known = "", [model]
    kinds: list[Any] = [model]
    for part in location:
        kinds = [kind for outer in kinds for kind in _unwrapped(outer)]
        if isinstance(part, str) and len(kinds) > 1:  # a union: pydantic says which member it tried
            kinds = [kind for kind in kinds if part in _tags(kind)] or kinds
            continue
        models = [kind for kind in map(_plain, kinds) if _is_model(kind)]
        known = models or known
        path += _step(part)
        kinds = [inner for kind in map(_plain, kinds) for inner in _inside(kind, part)]
    return Place(path.removeprefix("."), tuple(sorted({name for one in known for name in one.model_fields})))


def _step(part: int | str) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    # repr for anything odd: a key may hold control characters or lone surrogates.
    return f".{part}" if part.replace("-", "_").isidentifier() else f".{part!r}"


def _unwrapped(annotation: Any) -> Iterator[Any]:
    """The members of a union, ``None`` left out; anything else is itself."""
    plain = _plain(annotation)
    if get_origin(plain) not in (Union, types.UnionType):
        yield annotation  # with its tag, where it has one
        return
    for member in get_args(plain):
        if member is not type(None):
            yield from _unwrapped(member)


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _tags(annotation: Any) -> set[str]:
    """What pydantic may call a member of a union."""
    plain = _plain(annotation)
    tags = {one.tag for one in getattr(annotation, "__metadata__", ()) if isinstance(one, Tag)}
    if _is_model(plain):
        tags.add(plain.__name__)
        for field in plain.model_fields.values():
            if get_origin(field.annotation) is Literal:
                tags |= {str(value) for value in get_args(field.annotation)}
    return tags


def _inside(annotation: Any, part: int | str) -> list[Any]:
    """Annotations of what lies under a key or an index."""
    if _is_model(annotation):
        field = annotation.model_fields.get(str(part))
        return [] if field is None else [field.annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return [arguments[1]]
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return [arguments[0]]
    return []


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
