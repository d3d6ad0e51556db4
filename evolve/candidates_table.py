"""Possible parents for people: one row per model, a matrix of who fits whom, and what is wrong with each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.candidates import Candidates
from evolve.check_table import STYLES, findings_table
from evolve.probe_findings import answer_facts
from fitness.findings import worst


def candidates_table(found: Candidates) -> RenderableType:
    """The models, their fit, and the findings."""
    parts: list[RenderableType] = []
    if found.names:
        parts.append(_models(found))
    if len(found.names) > 1:
        parts += [_matrix(found), Text(_legend(found))]
    for a, b in _worth_telling(found):
        fit = found.fit(a, b)
        worst_of_pair = [one for one in fit.findings if one.level == fit.level]
        parts += [Text(f"\n{found.short[a]} and {found.short[b]}:"), findings_table(worst_of_pair, found.short)]
    alone = [one for name in found.names for one in found.alone[name]]
    if findings := [one for one in (*alone, *found.findings) if one.level != "ok"]:
        parts += [Text(""), findings_table(findings, found.short)]
    parts += [Text(line) for line in _closing(found)]
    return Group(*parts)


def _worth_telling(found: Candidates) -> Iterator[tuple[str, str]]:
    """Pairs that do not fit well; of two families, whose members all meet the same, the first pair alone."""
    home = {name: number for number, kind in enumerate(found.families) for name in kind}
    told = set()
    for a, b in combinations([one for one in found.names if found.sound(one)], 2):
        homes = home.get(a, a), home.get(b, b)
        if found.fit(a, b).level in ("warning", "error") and (homes[0] == homes[1] or homes not in told):
            told.add(homes)
            yield a, b


def _models(found: Candidates) -> Table:
    """A row per model; columns of what was not looked at are left out."""
    table = Table("", "model", box=SIMPLE)
    if found.base is not None:
        table.add_column("from base")
    if found.asked:
        for column in ("fitness", "ended", "loops", "chars", "writing"):
            table.add_column(column)
    table.add_column("by itself", overflow="fold")
    for number, name in enumerate(found.names, start=1):
        size, level = found.size(name), worst(found.alone[name])
        cells = [str(number), found.short[name]]
        cells += ["-" if size is None else f"{size:.3g}"] if found.base is not None else []
        cells += _answered(found, name) if found.asked else []
        checks = dict.fromkeys(one.check for one in found.alone[name] if one.level == level)
        said = f"{level}: {', '.join(checks)}" if level in ("warning", "error") else level
        table.add_row(*cells, Text(said, style=STYLES[level]))
    return table


def _answered(found: Candidates, name: str) -> list[str]:
    marks, asked = found.marks.get(name), found.asked.get(name)
    fitness = "-"
    if marks is not None and marks.fitness is not None:
        fitness = f"{marks.fitness.value:.3f} ± {marks.fitness.stderr:.3f}"
    if asked is None or not asked.responses:
        return [fitness, *"-" * 4]
    facts = answer_facts(asked)
    writing = max(facts["writings"], key=facts["writings"].get)
    return [fitness, f"{facts['ended']:.0%}", f"{facts['looping']:.0%}", f"{facts['mean_chars']:.0f}", writing]


def _matrix(found: Candidates) -> Table:
    table = Table(
        "", *(str(number) for number in range(1, len(found.names) + 1)), title="Fit", title_justify="left", box=SIMPLE
    )
    for number, a in enumerate(found.names, start=1):
        table.add_row(f"{number} {found.short[a]}", *(_cell(found, a, b) for b in found.names))
    return table


def _cell(found: Candidates, a: str, b: str) -> Text:
    if a == b:
        return Text("")
    if not (found.sound(a) and found.sound(b)):
        return Text("-")
    fit, cosine = found.fit(a, b), found.cosine(a, b)
    said = fit.level if cosine is None else f"{fit.level} {cosine:+.2f}"
    return Text(said, style=STYLES[fit.level])


def _legend(found: Candidates) -> str:
    fit = "error: cannot be merged; warning: can, and probably disappoints; -: one of them is broken by itself"
    if found.base is None:
        return f"{fit}. With --base, also how alike their task vectors are."
    base = found.short.get(found.base, found.base)
    return (
        f"{fit}; the number is the cosine of their task vectors: near 0 they learnt different things, near 1 the same. "
        f"'from base' is the task vector's length, in lengths of the weights of {base}."
    )


def _closing(found: Candidates) -> Iterator[str]:
    scored = {name: marks.fitness for name, marks in found.marks.items() if marks.fitness is not None}
    if len(scored) > 1:
        best = max(scored, key=lambda name: scored[name].value)
        partners = [name for name in found.names if name not in (best, found.base) and found.sound(name)]
        others = [name for name in partners if found.fit(best, name).level != "error"]
        yield (
            f"Best by itself: {found.short[best]}, on {scored[best].scored} answers; a rough order, see the standard "
            f"errors. It can be merged with {', '.join(found.short[one] for one in others) or 'none of the others'}."
        )
    if len(found.names) == 1:
        yield "Name two models or more, or a config, to see who fits whom."
    failed = {name: one.failure for name, one in found.asked.items() if one.failure}
    failed |= {name: one.failure for name, one in found.marks.items() if one.failure}
    yield from (f"{found.short[name]} has no fitness: {reason}" for name, reason in failed.items())
