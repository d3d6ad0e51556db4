"""The plan of a run for people: what will be done, how often, and why it will stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evolve.judge_costs import answers_of, estimates
from evolve.judging import cautions_of

if TYPE_CHECKING:
    from evolve.config import RunConfig
    from evolve.prepare import Prepared


_JUDGED = (
    "Judging is counted as if every answer were as long as it may be and new to the judge. Identical answers, and "
    "those that any run has had judged before, cost nothing; what failed or broke the protocol is asked again."
)


def plan_table(prepared: Prepared) -> RenderableType:
    """What will run, and why it will stop, for someone who has not read a manual."""
    plan, config = prepared.plan, prepared.config
    table = Table("", "", title="Plan", show_header=False, title_justify="left")
    table.add_row(
        "Searched numbers (n)", f"{plan.dimensions}: " + "; ".join(c.name for c in prepared.genome.coordinates)
    )
    table.add_row(
        "Candidates per generation (popsize)", f"{plan.popsize}  ({_popsize_reason(config, prepared.workers)})"
    )
    table.add_row(
        "Generations",
        f"{plan.generations}  ({plan.max_fevals} evaluations // {plan.popsize} per generation)"
        if plan.generations == plan.max_fevals // plan.popsize
        else f"{plan.generations}  (as you asked)",
    )
    table.add_row(
        "Evaluations in the search (max-fevals)",
        f"{plan.search_evaluations}  = {plan.generations} x {plan.popsize}"
        + (
            f" + {plan.remainder} left over: the distribution mean and new points around the leaders"
            if plan.remainder
            else ""
        ),
    )
    table.add_row("Parents and baselines", f"{plan.baselines}  on top: each answers search and validation prompts")
    table.add_row(
        "Finalists",
        f"{plan.finalists}  on top: the distribution mean{'' if plan.remainder else ' (on search prompts too)'} and "
        "the best candidates, on validation prompts",
    )
    table.add_row(
        "All evaluations", f"{plan.total_evaluations}  on {prepared.workers} {prepared.spec.engine} worker(s)"
    )
    table.add_row("Answers", _answers(prepared))
    judged = estimates(prepared)
    for one in judged:
        table.add_row("Judge of the finals" if one.setting == "fitness.final_judge" else "Judge", str(one))
    table.add_row("Against noise", "; ".join(_noise_handling(prepared)))
    table.add_row(
        "Prompts", f"{len(prepared.prompts['search'])} search, {len(prepared.prompts['validation'])} validation"
    )
    text = [
        f"The search asks for {plan.popsize} merges, scores them, learns, and repeats: {plan.generations} generations. "
        f'One merge that is built, asked all search prompts and scored is one evaluation (one "feval"). '
        f"max-fevals is a hard cap on them: never more than {plan.max_fevals}. "
        "Parents and finalists are counted on lines of their own.",
        "It stops when " + ", or when ".join(_stops(config)) + ". The reason is recorded by name.",
        *([_JUDGED] if judged else []),
        *(f"Note: {note}" for note in (*prepared.genome.notes, *cautions_of(config))),
        *(f"Warning: {one.caution} The run will stop there, resumable." for one in judged if one.caution),
    ]
    return Group(table, *(Text(line) for line in text))


def _popsize_reason(config: RunConfig, workers: int) -> str:
    if config.budget.popsize is not None:
        return "as you asked"
    if config.budget.generations is not None and config.budget.max_fevals is not None:
        return "max_fevals // generations"
    doubled = ", doubled for noise" if config.search.noise == "high" else ""
    rounded = f", rounded up to a multiple of {workers} workers" if workers > 1 else ""
    return f"4 + floor(3 ln n){doubled}{rounded}"


def _answers(prepared: Prepared) -> str:
    """How much is generated, for an estimate of time."""
    answers = sum(answers_of(prepared).values())
    return f"about {answers}, each of at most {prepared.generation.max_new_tokens} tokens"


def _noise_handling(prepared: Prepared) -> list[str]:
    config = prepared.config
    handling = ["the same prompts and decoding seeds for every candidate"]
    if "doubled" in _popsize_reason(config, prepared.workers):
        handling.append("popsize doubled (search.noise)")
    for split, setting, repeats in (
        ("search", "search.repeats", config.search.repeats),
        ("validation", "finalists.repeats", config.finalist_repeats),
    ):
        if repeats > 1:
            handling.append(f"{repeats} answers to each {split} prompt ({setting})")
    return handling


def _stops(config: RunConfig) -> list[str]:
    search = config.search
    stops = ["the evaluations are used up (budget)"]
    if config.budget.max_hours is not None:
        stops.append(f"{config.budget.max_hours:g} hours have passed (wall_clock)")
    if search.target_fitness is not None:
        stops.append(f"a candidate reaches fitness {search.target_fitness:g} (target_fitness)")
    stops.append(f"the step size falls below {search.min_sigma:g} (min_sigma)")
    stops.append(f"{search.stagnation_generations} generations in a row bring nothing better (stagnation)")
    return stops
