"""What recording a finished evaluation costs, and how it grows.

    python benchmarks/history.py --evaluations 10000 --parameters 32

Three ways to keep an Optuna study, each in a process of its own:

* ``store``: ``evolve.store.Store`` on SQLite.
* ``add_trial``: ``study.add_trial`` on SQLite, as Optuna's documentation does it.
* ``journal``: ``study.add_trial`` on Optuna's journal file.

Opening means until the fitness of every row is known; replaying, until every row's genotype and recipe is.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from evolve.evaluation import Candidate, Evaluation
from evolve.genome import Genome
from evolve.genome_config import GenomeConfig
from evolve.store import Store, default_url
from fitness.aggregate import Fitness
from workers.job import Share
from workers.models import Architecture

POPSIZE = 16
WAYS = ("store", "add_trial", "journal")


def make_genome(parameters: int) -> Genome:
    """Two models over ``parameters / 2`` groups of two layers each."""
    layers = tuple((f"model.layers.{i}.mlp.up_proj.weight",) for i in range(parameters))
    root = "/data/shared/projects/merging/models/checkpoints"
    config = GenomeConfig.model_validate(
        {
            "models": [f"{root}/japanese-persona-8b-step-{n}000" for n in (12, 16)],
            "base_model": f"{root}/base-8b",
            "merge_method": "task_arithmetic",
            "layer_granularity": 2,
            "parameters": {"weight": {"min": -0.5, "max": 1.5}},
        }
    )
    return Genome(config, Architecture(parameters, ("embed",), layers, ("head",)), out_dtype="bfloat16")


def make_row(genome: Genome, number: int, chance: random.Random) -> Evaluation:
    """A row as a run records it."""
    genotype = tuple(chance.random() for _ in genome.coordinates)
    generation, index = divmod(number, POPSIZE)
    key, label = f"search-{generation:04d}-{index:03d}", f"candidate {generation}.{index}"
    candidate = Candidate(key, "search", label, genome.decode(genotype), "search", 1, generation, index, genotype)
    parts = {name: chance.random() for name in ("persona", "facts", "length", "observed.tokens", "observed.ended")}
    seconds = {"merge": chance.random(), "generate": chance.random(), "judge": chance.random()}
    shares = (Share(index % 4, 64, time.time(), chance.random()),)
    return Evaluation(candidate, Fitness(chance.random(), 0.1, 64, 64, parts), seconds, f"{key}.jsonl", shares)


def open_study(way: str, folder: Path, *, create: bool) -> optuna.Study:
    """The study of the ways that are not ours."""
    journal = way == "journal"
    storage = JournalStorage(JournalFileBackend(str(folder / "history.log"))) if journal else default_url(folder)
    if create:
        return optuna.create_study(storage=storage, study_name="run", direction="maximize")
    return optuna.load_study(storage=storage, study_name="run")


def adder(way: str, folder: Path, genome: Genome) -> Callable[[Evaluation], object]:
    """Records one row."""
    if way == "store":
        store = Store(default_url(folder), "run", create=True)
        return lambda row: store.add(row, genome.coordinates, genome.values(row.candidate.genotype or ()))
    study = open_study(way, folder, create=True)
    distributions = {c.name: FloatDistribution(c.low, c.high) for c in genome.coordinates}

    def add(row: Evaluation) -> None:
        values = genome.values(row.candidate.genotype or ())
        data = {"evaluation": row.to_dict(), "recipe_hash": row.candidate.recipe.hash}
        study.add_trial(
            optuna.create_trial(value=row.value, params=values, distributions=distributions, user_attrs=data)
        )

    return add


def memory() -> float:
    """MB that this process holds."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def write(way: str, folder: Path, evaluations: int, parameters: int) -> dict[str, float]:
    genome, chance = make_genome(parameters), random.Random(0)
    add = adder(way, folder, genome)
    wall, processor = [], []
    before = memory()
    for number in range(evaluations):
        row = make_row(genome, number, chance)
        wall_start, processor_start = time.perf_counter(), time.process_time()
        add(row)
        wall.append(1e3 * (time.perf_counter() - wall_start))
        processor.append(1e3 * (time.process_time() - processor_start))
    part = max(1, min(1000, evaluations // 5))
    mean = {
        f"{when} {what}": sum(times) / part
        for what, series in (("wall", wall), ("cpu", processor))
        for when, times in (("first", series[:part]), ("last", series[-part:]))
    }
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return {**mean, "grown": memory() - before, "disk": size}


def read(way: str, folder: Path) -> dict[str, float]:
    before, start = memory(), time.perf_counter()
    if way == "store":
        store = Store(default_url(folder), "run")
        summaries = store.summaries()
        opened = time.perf_counter()
        for summary in summaries:
            store.get(summary.key)
    else:
        trials = open_study(way, folder, create=False).get_trials(deepcopy=False)
        opened = time.perf_counter()
        for trial in trials:
            Evaluation.from_dict(trial.user_attrs["evaluation"], trial.number)
    replayed = time.perf_counter()
    return {"open": opened - start, "replay": replayed - opened, "opened": memory() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--parameters", type=int, default=32, help="an even number")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--folder", type=Path, help="where the databases are made; default: the temporary folder")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)  # of a child: what, way, folder
    arguments = parser.parse_args()
    if arguments.part:
        what, way, folder = arguments.part
        done = (
            write(way, Path(folder), arguments.evaluations, arguments.parameters)
            if what == "write"
            else read(way, Path(folder))
        )
        print(json.dumps(done))
        return
    columns = ("first wall", "last wall", "first cpu", "last cpu", "grown", "disk", "open", "replay", "opened")
    units = ("ms", "ms", "ms", "ms", "MB", "MB", "s", "s", "MB")
    print(
        f"{arguments.evaluations} evaluations, {arguments.parameters} parameters; per evaluation, first and last part"
    )
    print(" " * 10 + "".join(f"{name:>12}" for name in columns) + f"{'last/first':>12}")
    for way in arguments.ways:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found: dict[str, float] = {}
            for what in ("write", "read"):
                command = [sys.executable, __file__, *sys.argv[1:], "--part", what, way, folder]
                found |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        cells = "".join(f"{found[name]:>9.2f} {unit:<2}" for name, unit in zip(columns, units, strict=True))
        print(f"{way:<10}{cells}{found['last wall'] / found['first wall']:>12.2f}", flush=True)


if __name__ == "__main__":
    main()
