"""``evolve check``: what can be wrong with a run, or with fine-tuning data, before it costs a night."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from evolve.errors import EXIT_USER_MISTAKE
from fitness.findings import Finding, worst

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a setting: budget.max_fevals=40.")
]


class _ConfigByDefault(TyperGroup):
    """``evolve check CONFIG`` stands for ``evolve check config CONFIG``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Names the command where none was named."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["config", *args]
        return super().parse_args(ctx, args)


check_app = typer.Typer(
    name="check",
    cls=_ConfigByDefault,
    no_args_is_help=True,
    help="Find what is wrong before the first expensive step: evolve check CONFIG, or evolve check labels.",
)


@check_app.command("config")
def check_config(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.")],
    overrides: Overrides = None,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Ask neither parents nor judge: starts no engine, costs nothing.")
    ] = False,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Do not compare the parents' weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Find what is wrong with parents, prompts, settings and judge before the first expensive step."""
    from evolve.check import check
    from evolve.check_table import check_table
    from evolve.config import load_config

    report = check(
        load_config(config, overrides or ()),
        weights=not no_weights,
        ask=not no_probe,
        say=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        Console().print(check_table(report))
    _end(report.findings)


@check_app.command()
def labels(
    model: Annotated[Path, typer.Option("--model", help="Folder of the model that was or will be fine-tuned.")],
    data: Annotated[Path, typer.Option("--data", help="The fine-tuning file: JSONL in OpenAI's chat format.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """See whether a fine-tuning file teaches a model to end its answers, as the common collators label it."""
    from evolve.check_table import findings_table
    from evolve.labels_report import labels_report
    from workers.label_findings import check_labels

    found, findings = check_labels(model, data)
    if as_json:
        plain = {"findings": [one.to_dict() for one in findings], "labels": None if found is None else found.to_dict()}
        typer.echo(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        if found is not None:
            Console().print(labels_report(found))
        Console().print(findings_table(findings))
    _end(findings)


def _end(findings: Sequence[Finding]) -> None:
    if worst(findings) == "error":
        raise typer.Exit(EXIT_USER_MISTAKE)
