"""Arguments and options that several commands share, and how they speak aside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.")]
RunName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the run.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder of the runs.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a setting: budget.max_fevals=40.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
RUNS = Path("runs")


def aside(text: str) -> None:
    """Says something that is no result, on stderr."""
    typer.echo(text, err=True)
