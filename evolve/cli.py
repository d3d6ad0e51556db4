"""The command line. Exit codes: 0 done; 2 the user's mistake; 3 stopped by a failure, resumable; 130 interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from evolve.check_cli import check_app
from evolve.cli_options import RUNS, ConfigFile, Json, Overrides, RunName, RunsDir, aside
from evolve.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_MISTAKE, RunStopped
from evolve.judge_cli import judge_app
from fitness.errors import JudgeStopped, UserMistake

if TYPE_CHECKING:
    from evolve.run import Run

app = typer.Typer(
    name="evolve",
    help="Evolve the best merge of fine-tuned LLMs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(check_app)
app.add_typer(judge_app)


@app.command()
def plan(config: ConfigFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show what a run would do and why it would stop. Checks everything, starts nothing."""
    import tempfile

    from evolve.config import load_config
    from evolve.judge_costs import estimates
    from evolve.plan_table import plan_table
    from evolve.prepare import prepare

    with tempfile.TemporaryDirectory() as work_dir:
        prepared = prepare(load_config(config, overrides or ()), Path(work_dir))
        if as_json:
            _print_json({**prepared.plan.to_dict(), "judges": [one.to_dict() for one in estimates(prepared)]})
        else:
            Console().print(plan_table(prepared))


@app.command()
def run(
    config: ConfigFile,
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: method and time.")] = None,
    runs_dir: RunsDir = RUNS,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Start in spite of warnings; they stay with the run.")] = False,
) -> None:
    """Search for the best merge. Checks first; errors end it, and warnings unless --force is given."""
    from evolve.config import load_config
    from evolve.first_check import checked
    from evolve.run import Run, new_folder

    settings = load_config(config, overrides or ())
    folder = new_folder(runs_dir, name, settings)
    warnings = checked(settings, source=config, runs_dir=runs_dir, force=force, say=aside)
    _execute(Run.create(settings, runs_dir=runs_dir, name=folder.name, warnings=warnings))


@app.command()
def resume(name: RunName, runs_dir: RunsDir = RUNS, overrides: Overrides = None) -> None:
    """Go on exactly where a run stopped; --set budget.max_fevals=200 extends it, finished or not."""
    from evolve.run import Run
    from evolve.tables import change_lines

    found = Run.open(name, runs_dir=runs_dir)
    changed = found.change(overrides) if overrides else {}
    for line in change_lines(changed):
        typer.echo(line)
    if found.status == "finished":
        typer.echo(f"{name} is finished; nothing to resume. See it with: evolve show {name}")
        return
    _execute(found)


@app.command()
def runs(runs_dir: RunsDir = RUNS, as_json: Json = False) -> None:
    """List all runs."""
    from evolve.run import Run, run_names
    from evolve.tables import runs_table
    from evolve.views import summary_dict

    found = []
    for name in run_names(runs_dir):
        try:
            found.append(Run.open(name, runs_dir=runs_dir))
        except UserMistake as error:  # one damaged run must not hide the others
            typer.echo(f"left out: {error}", err=True)
    if not found and not as_json:
        typer.echo(f"There are no runs in {runs_dir.resolve()}. Start one with: evolve run CONFIG")
        return
    if as_json:
        _print_json([summary_dict(one) for one in found])
    else:
        Console().print(runs_table(found))


@app.command()
def show(name: RunName, runs_dir: RunsDir = RUNS, as_json: Json = False) -> None:
    """Show status, best recipes, parents and finalists."""
    from evolve.run import Run
    from evolve.tables import closing_table, status_lines
    from evolve.views import show_dict

    found = Run.open(name, runs_dir=runs_dir)
    if as_json:
        _print_json(show_dict(found))
        return
    for line in status_lines(found):
        typer.echo(line)
    Console().print(closing_table(found))


@app.command()
def history(
    name: RunName,
    runs_dir: RunsDir = RUNS,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
) -> None:
    """Show a row per evaluation."""
    from evolve.run import Run
    from evolve.tables import history_table
    from evolve.views import history as rows_of

    rows = rows_of(Run.open(name, runs_dir=runs_dir))
    if as_json:
        _print_json(rows)
    elif as_csv:
        flat = [
            {key: value if not isinstance(value, dict | list) else json.dumps(value) for key, value in row.items()}
            for row in rows
        ]
        writer = csv.DictWriter(sys.stdout, fieldnames=list(flat[0]) if flat else ["number"])
        writer.writeheader()
        writer.writerows(flat)
    else:
        Console().print(history_table(rows))


@app.command()
def recipe(
    name: RunName,
    rank: Annotated[int, typer.Option(min=1, help="1 is the best.")] = 1,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Print the mergekit YAML of a recipe."""
    typer.echo(_ranked(name, rank, runs_dir)[1].recipe.yaml(), nl=False)


@app.command()
def export(
    name: RunName,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; it must not exist.")],
    rank: Annotated[int, typer.Option(min=1, help="1 is the best.")] = 1,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Write a recipe's model as a Hugging Face folder: exactly the model that was scored."""
    from evolve.export import export_ranked

    found, ranked = _ranked(name, rank, runs_dir)
    export_ranked(found, ranked, out)
    typer.echo(f"{out}: {ranked.label} of {name}, checked tensor by tensor against the recipe.")


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="A checkpoint in pickle format (.bin).")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
) -> None:
    """Convert a pickle checkpoint to safetensors without executing what is in it."""
    from workers.convert import convert_checkpoint

    convert_checkpoint(folder, out)
    typer.echo(f"{out}: converted from {folder}.")


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: demo-SEED.")] = None,
    runs_dir: RunsDir = RUNS,
    overrides: Overrides = None,
) -> None:
    """Run the whole thing from nothing, on small models that it trains itself."""
    from evolve.demo import run_demo

    run_demo(seed=seed, name=name or f"demo-{seed}", runs_dir=runs_dir, overrides=overrides or (), console=Console())


def main() -> None:
    """The entry point: every ending becomes an exit code, and a mistake one message."""
    code = _main(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the ending is decided; impatience must not change the exit code
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


def _main(arguments: list[str]) -> int:
    from evolve.resources import refuse_foreign_packages

    # OpenMP threads that wait by spinning starve each other where several processes share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        refuse_foreign_packages()
        app(arguments)
    except SystemExit as ending:
        # typer ends with 2 for wrong options, as we do, and with 1 for Ctrl-C only.
        return EXIT_INTERRUPTED if ending.code == 1 else int(ending.code or EXIT_DONE)
    except UserMistake as error:
        return _say(f"error: {error}", EXIT_USER_MISTAKE)
    except RunStopped as error:
        return _say(f"stopped: {error}\nEverything finished is kept; resume when the cause is mended.", EXIT_STOPPED)
    except JudgeStopped as error:
        return _say(f"stopped: {error}", EXIT_STOPPED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full or unreadable disk
        where = f": {error.filename}" if error.filename else ""
        return _say(
            f"stopped: {error.strerror or error}{where}\n"
            "Everything finished is kept; try again when the cause is mended.",
            EXIT_STOPPED,
        )
    return EXIT_DONE


def _execute(run: Run) -> None:
    from evolve.tables import closing_table, status_lines
    from evolve.terminal import drive

    console = Console()
    drive(run, console)
    console.print(closing_table(run))
    for line in status_lines(run):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _ranked(name: str, rank: int, runs_dir: Path) -> tuple[Run, Any]:
    from evolve.errors import StoreError
    from evolve.run import Run
    from evolve.views import ranking

    found = Run.open(name, runs_dir=runs_dir)
    ranked = ranking(found)
    if rank > len(ranked):
        raise StoreError(f"--rank {rank}: run {name} has {len(ranked)} scored recipes.")
    return found, ranked[rank - 1]


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def _say(text: str, code: int) -> int:
    aside(text)
    return code


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
