"""``evolve judge``: try a judge before trusting it with a search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from evolve.cli_options import RUNS, Json, RunsDir, aside
from evolve.errors import EXIT_STOPPED, ConfigError

if TYPE_CHECKING:
    from evolve.judge_trial import Setup
    from fitness.prompts import Prompt
    from fitness.responses import Response

judge_app = typer.Typer(
    name="judge", help="Try the judge of a config before trusting it with a search.", no_args_is_help=True
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file; its models are not needed.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a setting: fitness.judge.samples=3.")
]
Final = Annotated[bool, typer.Option("--final", help="Try fitness.final_judge.")]
Html = Annotated[Path | None, typer.Option("--html", help="Also write a page with plots.")]


@judge_app.command()
def ask(
    config: ConfigFile,
    answer: Annotated[str, typer.Option(help="The answer to be judged.")],
    prompt: Annotated[str | None, typer.Option(help="The question, in your own words.")] = None,
    prompt_id: Annotated[str | None, typer.Option(help="The question, by its id in the config's prompts.")] = None,
    reference: Annotated[list[str] | None, typer.Option(help="A right answer to --prompt.")] = None,
    overrides: Overrides = None,
    final: Final = False,
    as_json: Json = False,
) -> None:
    """Show one judgement with its reasons."""
    from evolve import judge_trial
    from evolve.config import load_config
    from evolve.judge_tables import ask_report

    if (prompt is None) == (prompt_id is None):
        raise ConfigError("evolve judge ask: give either --prompt or --prompt-id.")
    setup = judge_trial.set_up(load_config(config, overrides or ()), final=final)
    if prompt_id is not None:
        asked = setup.known(prompt_id, "--prompt-id")
    else:
        asked = setup.prompt(prompt or "", references=reference or ())
    with judge_trial.trial(setup, say=aside) as tried:
        report = judge_trial.ask(tried, asked, answer)
    _show(report, ask_report, as_json=as_json)
    if report["verdict"] is None:
        raise typer.Exit(EXIT_STOPPED)


@judge_app.command()
def check(
    config: ConfigFile,
    labels: Annotated[
        Path, typer.Option(help="CSV: prompt_id or prompt, answer, score or a column per criterion, rater.")
    ],
    repeats: Annotated[int, typer.Option(min=1, help="How often each answer is judged; 1: no test-retest.")] = 2,
    overrides: Overrides = None,
    final: Final = False,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Measure how far the judge agrees with people, and with itself."""
    from evolve.config import load_config
    from evolve.judge_check import check, questions
    from evolve.judge_tables import check_report
    from evolve.judge_trial import set_up, trial
    from fitness.labels import read_labels

    _refuse_folder(html)
    setup = set_up(load_config(config, overrides or ()), final=final)
    scale = (setup.rubric.scale.min, setup.rubric.scale.max)
    labelled = read_labels(labels, criteria=[one.name for one in setup.rubric.criteria], scale=scale)
    prompts = questions(setup, labelled)
    with trial(setup, say=aside) as tried:
        report = check(tried, prompts, labelled, repeats=repeats)
    _page(html, report)
    _show(report, check_report, as_json=as_json)


@judge_app.command()
def attack(
    config: ConfigFile,
    run: Annotated[str | None, typer.Option(help="Take the parents' answers of this run.")] = None,
    answers: Annotated[
        list[Path] | None, typer.Option(help="JSONL with prompt_id and text on each line, such as a transcript.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many answers to attack.")] = 10,
    runs_dir: RunsDir = RUNS,
    injections: Annotated[Path | None, typer.Option(help="Your own injections (YAML). Default: those shipped.")] = None,
    overrides: Overrides = None,
    final: Final = False,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Measure whether answers can talk the judge into better scores."""
    from evolve.config import load_config
    from evolve.judge_attack import attack
    from evolve.judge_tables import attack_report
    from evolve.judge_trial import set_up, trial
    from evolve.resources import configs_dir
    from fitness.attacks import read_injections

    _refuse_folder(html)
    files = [path.resolve() for path in answers or ()]
    if run is not None:
        files += _parents(run, runs_dir)
    if not files:
        raise ConfigError("evolve judge attack: name the answers: --run NAME, or --answers FILE.")
    laid = read_injections(injections or configs_dir() / "attacks" / "injections.yaml")
    setup = set_up(load_config(config, overrides or ()), final=final)
    attacked = _answers(setup, files, count)
    with trial(setup, say=aside) as tried:
        report = attack(tried, attacked, laid)
    _page(html, report)
    _show(report, attack_report, as_json=as_json)


def _parents(name: str, runs_dir: Path) -> list[Path]:
    from evolve.run import Run

    run = Run.open(name, runs_dir=runs_dir)
    found = [row.transcript_in(run.transcripts) for row in run.store.rows("parent") if row.value is not None]
    return [path for path in found if path is not None]


def _answers(setup: Setup, files: Sequence[Path], count: int) -> list[tuple[Prompt, Response]]:
    """Answers to prompts of the config, taken from the files in turn, each prompt once."""
    from fitness.judges import read_answers

    taken: dict[str, Response] = {}
    pools = [read_answers(file, setting="--answers") for file in files]
    for prompt_id in sorted({one for pool in pools for one in pool}):
        holders = [pool for pool in pools if prompt_id in pool]
        taken[prompt_id] = holders[len(taken) % len(holders)][prompt_id]
    if not taken:
        named = ", ".join(map(str, files))
        raise ConfigError(f"{named}: no answers; each line needs prompt_id (of a prompt of the config) and text.")
    step = max(1, len(taken) // count)
    chosen = list(taken.items())[::step][:count]
    return [(setup.known(prompt_id, "--answers"), response) for prompt_id, response in chosen]


def _refuse_folder(html: Path | None) -> None:
    if html is not None and (html.is_dir() or not html.resolve().parent.is_dir()):
        raise ConfigError(f"--html {html}: is a folder, or in a folder that does not exist.")


def _page(html: Path | None, report: dict[str, Any]) -> None:
    from evolve.judge_page import write_judge_page

    if html is not None:
        write_judge_page(html, report)
        aside(f"{html}: written.")


def _show(report: dict[str, Any], table: Any, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        Console().print(table(report))
