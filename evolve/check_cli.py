"""``evolve check``: what can be wrong with a run, or with fine-tuning data, before it costs a night."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from evolve.cli_options import RUNS, ConfigFile, Json, Overrides, RunsDir, aside
from evolve.errors import EXIT_USER_MISTAKE, ConfigError
from fitness.findings import Finding, worst


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
    help="Find what is wrong before the first expensive step: evolve check CONFIG (its options: evolve check config "
    "--help), evolve check labels, evolve check parents.",
)


@check_app.command("config")
def check_config(
    config: ConfigFile,
    overrides: Overrides = None,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Ask neither parents nor judge: starts no engine, costs nothing.")
    ] = False,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Do not compare the parents' weights.")] = False,
    prompts: Annotated[int, typer.Option(min=2, help="How many search prompts each parent answers.")] = 16,
    difference: Annotated[
        float, typer.Option(min=1e-6, help="The gain in fitness that the run is to show: how many prompts it takes.")
    ] = 0.05,
    runs_dir: RunsDir = RUNS,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also say what is in order.")] = False,
    as_json: Json = False,
) -> None:
    """Find what is wrong with parents, prompts, settings and judge before the first expensive step."""
    from evolve.check import Asking, check
    from evolve.check_table import check_table
    from evolve.config import load_config

    report = check(
        load_config(config, overrides or ()),
        weights=not no_weights,
        ask=not no_probe,
        asking=Asking(prompts, difference),
        runs_dir=runs_dir,
        say=aside,
    )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        Console().print(check_table(report, verbose=verbose))
    _end(report.findings)


@check_app.command()
def labels(
    model: Annotated[Path, typer.Option("--model", help="The model that was or will be fine-tuned.")],
    data: Annotated[Path, typer.Option("--data", help="The fine-tuning file: JSONL in OpenAI's chat format.")],
    as_json: Json = False,
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


@check_app.command()
def parents(
    models: Annotated[list[str], typer.Argument(metavar="DIR_OR_ID...", help="Possible parents.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A run's YAML: its models are compared too, its fitness scores."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="The model they come from. Default: the config's.")] = None,
    overrides: Overrides = None,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Ask neither models nor judge.")] = False,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Do not compare the weights.")] = False,
    prompts: Annotated[int, typer.Option(min=2, help="How many search prompts each model answers.")] = 16,
    as_json: Json = False,
) -> None:
    """Compare possible parents with each other: which fit, which differ, which answer well by themselves."""
    from evolve.candidates import compare_candidates
    from evolve.candidates_table import candidates_table
    from evolve.config import load_config

    if overrides and config is None:
        raise ConfigError("--set: there is nothing to override without --config.")
    found = compare_candidates(
        models,
        None if config is None else load_config(config, overrides or ()),
        base=base,
        weights=not no_weights,
        ask=not no_probe,
        prompts=prompts,
        say=aside,
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        Console().print(candidates_table(found))
    _end(found.findings)


def _end(findings: Sequence[Finding]) -> None:
    if worst(findings) == "error":
        raise typer.Exit(EXIT_USER_MISTAKE)
