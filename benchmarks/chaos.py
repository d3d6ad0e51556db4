"""Pulls the plug: kills runs with -9 at random moments, resumes them, and compares them with runs left alone.

    python benchmarks/chaos.py [--runs 40] [--engine transformers] [--seed 0] [--max-kills 5]
    python benchmarks/chaos.py --runs 3 --engine vllm

Each run is killed 1 to `--max-kills` times (the driver process alone; Ray and the engines must go by themselves) and
resumed at once. A moment is drawn in one of three ways: uniformly over the time that the sitting will take, which is
mostly start-up; after a uniformly drawn number of transcripts, so that every stage gets its share; or within
milliseconds of a transcript's appearance, where a row may still be missing. Every third finished run is exported, the
export killed, and exported again. Exit code 1 where anything differs, is lost, torn, or left running.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from common.comparing import differences, fingerprints, model_digest, recorded, torn, trials
from common.driving import Departures, Sitting, TimedOut, end_all, evolve
from common.tiny_models import build_family, config_on, write_prompts

PROMPTS = 4  # per split
SEEDS = 3  # of the search: as many reference runs
POPSIZE, MAX_FEVALS = 4, 14
POLL_SECONDS = 0.001
TRIES = 3  # a run that ends before its first kill is started anew


@dataclass
class Reference:
    """A run that was left alone."""

    rows: list[dict[str, Any]]
    trials: list[int]
    model: dict[str, str]
    start_seconds: float  # until its first transcript
    run_seconds: float
    export_seconds: float


@dataclass
class Case:
    """One run that was killed, and what came of it."""

    number: int
    kills: list[str] = field(default_factory=list)  # the stages in which they fell
    export_kills: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    rowless: list[int] = field(default_factory=list)  # at each kill: transcripts whose row was missing


class Campaign:
    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root, self.options = root, options
        self.patience = 900.0 if options.engine == "vllm" else 300.0
        self.departures = Departures()
        folders = build_family(root / "models")
        prompts = write_prompts(root / "prompts.jsonl", per_split=PROMPTS)
        for seed in range(SEEDS):
            config = config_on(
                folders,
                prompts,
                budget={"max_fevals": MAX_FEVALS, "popsize": POPSIZE},
                finalists={"top_k": 2},
                workers={"engine": options.engine, "count": 1},
                seed=seed,
            )
            (root / f"seed-{seed}.yaml").write_text(yaml.safe_dump(config))
        self.references: dict[int, Reference] = {}

    def start(self, title: str, command: str, *arguments: str) -> Sitting:
        return Sitting((command, *arguments, "--runs-dir", str(self.root / "runs")), self.root / "sittings" / title)

    def begin_or_resume(self, name: str, seed: int, title: str) -> Sitting:
        """As the Slurm script in the README does."""
        if (self.root / "runs" / name / "run.json").exists():
            return self.start(title, "resume", name)
        return self.start(title, "run", str(self.root / f"seed-{seed}.yaml"), "--name", name, "--force")

    def ask(self, *arguments: str) -> str:
        return evolve(*arguments, "--runs-dir", str(self.root / "runs"), seconds=self.patience)

    def refer(self, seed: int) -> None:
        name = f"reference-{seed}"
        folder = self.root / "runs" / name
        sitting = self.begin_or_resume(name, seed, name)
        while not sitting.ended and not files_of(folder):
            time.sleep(0.02)
        begun = sitting.seconds
        if sitting.wait(self.patience):
            raise SystemExit(f"the reference run failed: {sitting.tail()}")
        self.departures.expect(sitting)
        ran = sitting.seconds
        started = time.monotonic()
        self.ask("export", name, "--out", str(self.root / f"{name}-model"))
        rows = self.history(name)
        self.references[seed] = Reference(
            rows, trials(folder), model_digest(self.root / f"{name}-model"), begun, ran, time.monotonic() - started
        )

    def history(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.ask("history", name, "--json"))
        return rows

    def case(self, number: int) -> Case:
        chance = random.Random(f"{self.options.seed}/{number}")
        planned = chance.randint(1, self.options.max_kills)
        for again in range(TRIES):
            case = Case(number)
            name = f"case-{number:02d}" + "-again" * again
            try:
                self.punish(case, name, planned, chance)
            except (TimedOut, RuntimeError, subprocess.TimeoutExpired) as error:
                case.wrong.append(str(error))
            if case.kills or case.wrong:
                break
        else:
            case.wrong.append(f"it ended {TRIES} times before it could be killed")
        kills = ", ".join(case.kills + [f"export: {stage}" for stage in case.export_kills])
        print(
            f"run {number:2d}: killed {len(case.kills)} times ({kills}); {'; '.join(case.wrong) or 'equal'}", flush=True
        )
        return case

    def punish(self, case: Case, name: str, planned: int, chance: random.Random) -> None:
        seed = case.number % SEEDS
        reference, folder = self.references[seed], self.root / "runs" / name
        kept: dict[str, tuple[int, str]] = {}
        for kill in range(planned):
            have = len(files_of(folder))
            sitting = self.begin_or_resume(name, seed, f"{name}-{kill}")
            struck = strike(sitting, folder, chance, reference, have)
            self.departures.expect(sitting)
            if not struck:
                if sitting.wait(1):
                    case.wrong.append(f"sitting {kill} ended by itself: {sitting.tail()}")
                break
            name_of_stage, rowless = stage(folder, have, reference)
            case.kills.append(name_of_stage)
            case.rowless.append(rowless)
            kept |= fingerprints(folder)
            time.sleep(chance.choice((0.0, 0.0, chance.uniform(0, 3))))
        last = self.begin_or_resume(name, seed, f"{name}-last")
        code = last.wait(self.patience)
        self.departures.expect(last)
        if code:
            case.wrong.append(f"the last resume ended with {code}: {last.tail()}")
            return
        now = fingerprints(folder)
        again = sorted(key for key, facts in kept.items() if now.get(key) != facts)
        case.lost += len(again)
        case.wrong += [f"{key} was finished and made again" for key in again]
        case.wrong += differences(reference.rows, self.history(name)) + torn(folder, answers=PROMPTS)
        if (found := trials(folder)) != reference.trials:
            case.wrong.append(f"Optuna counts {found} trials, not {reference.trials}")
        if case.number % 3 == 0 and case.kills:
            self.export(case, name, reference, chance)

    def export(self, case: Case, name: str, reference: Reference, chance: random.Random) -> None:
        """Kills an export; what it leaves must not look complete, or be complete, and a second must come to the end."""
        out = self.root / "exports" / name / "model"
        out.parent.mkdir(parents=True)
        for how in ("clock", "writing", "late"):
            sitting = self.start(f"{name}-export-{how}", "export", name, "--out", str(out))
            wait_for_export(sitting, out, how, chance, reference.export_seconds)
            struck = sitting.kill()
            self.departures.expect(sitting)
            if not struck:
                break
            whole = out.exists() and (out / "README.md").exists() and model_digest(out) == reference.model
            begun = "writing" if any(out.parent.iterdir()) else "start-up"
            case.export_kills.append("complete" if whole else "half-done" if out.exists() else begun)
            if out.exists() and not whole:
                missing = sorted({*reference.model, "README.md"} - {path.name for path in out.iterdir()})
                case.wrong.append(f"a killed export left a folder that looks complete but lacks {missing}")
                shutil.rmtree(out)
            if whole:
                break
        try:
            self.ask("export", name, "--out", str(out))
        except RuntimeError as error:
            if not (out.exists() and str(out) in str(error) and model_digest(out) == reference.model):
                case.wrong.append(str(error))
        if model_digest(out) != reference.model:
            case.wrong.append("the exported model differs from the reference's")
        case.wrong += [f"{p.name} was left behind by a killed export" for p in out.parent.iterdir() if p != out]


def stage(folder: Path, before: int, reference: Reference) -> tuple[str, int]:
    """Where a run was cut, by what it has on the disk, and how many transcripts have no row yet.

    Args:
        folder: the run's.
        before: transcripts when the sitting began.
        reference: the run left alone.
    """
    if not (folder / "run.json").exists():
        return "creation", 0
    rows, files = recorded(folder), len(files_of(folder))
    searched = [row for row in rows if row["kind"] == "search"]
    if files == before:
        name = "start-up of a resume" if before else "start-up"
    elif len(rows) == len(reference.rows):
        name = "closing"
    elif any(row["split"] == "validation" for row in rows) or len(searched) == MAX_FEVALS:
        name = "finalists"
    elif not searched:
        name = "baselines"
    else:
        name = "mid-generation" if len(searched) % POPSIZE else "between generations"
    return name, files - len(rows)


def strike(sitting: Sitting, folder: Path, chance: random.Random, reference: Reference, have: int) -> bool:
    """Waits for a random moment and kills; False where the sitting ended before."""
    total = len(reference.rows)
    work_seconds = reference.run_seconds - reference.start_seconds
    how = chance.choices(("clock", "progress", "edge"), (0.45, 0.4, 0.15))[0]
    if how == "clock" or have >= total:
        moment = chance.uniform(0, 0.95 * (reference.start_seconds + work_seconds * (total - have) / total))
        while not sitting.ended and sitting.seconds < moment:
            time.sleep(0.01)
    else:
        wanted = chance.randint(have + 1, total)
        while not sitting.ended and len(files_of(folder)) < wanted and sitting.seconds < 300:
            time.sleep(POLL_SECONDS)
        time.sleep(chance.uniform(0, 0.02 if how == "edge" else 2 * work_seconds / total))
    return sitting.kill()


def wait_for_export(sitting: Sitting, out: Path, how: str, chance: random.Random, seconds: float) -> None:
    """Until a random moment of an export: of its whole time, of its writing, or just after its folder appears."""
    if how == "clock":
        moment = chance.uniform(0, 0.95 * seconds)
        while not sitting.ended and sitting.seconds < moment:
            time.sleep(POLL_SECONDS)
        return
    while not sitting.ended and not (out.exists() if how == "late" else any(out.parent.iterdir())):
        time.sleep(POLL_SECONDS)
    time.sleep(chance.uniform(0, 0.005 if how == "late" else 0.1))


def files_of(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder / "transcripts") if name.endswith(".jsonl")]  # noqa: PTH208
    except OSError:
        return []


def report(campaign: Campaign, cases: list[Case], left: dict[str, list[str]], shared: int) -> dict[str, Any]:
    stages = Counter(kill for case in cases for kill in case.kills)
    gone = campaign.departures.seconds
    evaluating = sum(n for name, n in stages.items() if name not in ("creation", "closing"))
    return {
        "engine": campaign.options.engine,
        "runs": len(cases),
        "kills": sum(stages.values()),
        "by_stage": dict(stages.most_common()),
        "export_kills": dict(Counter(kill for case in cases for kill in case.export_kills).most_common()),
        "runs_that_differ": sum(1 for case in cases if case.wrong),
        "lost_evaluations": sum(case.lost for case in cases),
        "kills_with_a_row_missing": sum(1 for case in cases for rowless in case.rowless if rowless),
        "in_flight_and_asked_again_at_most": evaluating,  # one worker: at most one per kill
        "seconds_until_no_process_median": round(statistics.median(gone.values()), 1) if gone else None,
        "seconds_until_no_process_longest": round(max(gone.values()), 1) if gone else None,
        "processes_left": left,
        "shared_memory_left_mib": shared >> 20,
        "cases": [asdict(case) for case in cases],
    }


def shared_memory() -> int:
    """Bytes in files of the machine's shared memory."""
    return sum(path.stat().st_size for path in Path("/dev/shm").iterdir() if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="number of the first run, to go on with a campaign")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--max-kills", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--leave-seconds", type=float, default=150, help="how long processes may take to go")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--keep", type=Path, help="work in this folder and keep it")
    options = parser.parse_args()
    for name, value in {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}.items():
        os.environ.setdefault(name, value)

    root = options.keep or Path(tempfile.mkdtemp(prefix="evolve-chaos-"))
    root.mkdir(parents=True, exist_ok=True)
    before, begun = shared_memory(), time.monotonic()
    campaign = Campaign(root.resolve(), options)
    numbers = range(options.first, options.first + options.runs)
    try:
        with ThreadPoolExecutor(options.parallel) as pool:
            list(pool.map(campaign.refer, sorted({number % SEEDS for number in numbers})))
            for seed, reference in sorted(campaign.references.items()):
                print(
                    f"reference {seed}: {len(reference.rows)} evaluations, {reference.run_seconds:.1f} s, "
                    f"the first after {reference.start_seconds:.1f} s",
                    flush=True,
                )
            cases = list(pool.map(campaign.case, numbers))
        left = campaign.departures.settle(options.leave_seconds)
    finally:
        end_all(campaign.root / "sittings")
    result = report(campaign, cases, left, max(0, shared_memory() - before))
    result["minutes"] = round((time.monotonic() - begun) / 60, 1)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
    for key, value in result.items():
        if key != "cases":
            print(f"{key.replace('_', ' '):36} {value}")
    for case in cases:
        for text in case.wrong:
            print(f"run {case.number}: {text}")
    failed = bool(result["runs_that_differ"] or result["lost_evaluations"] or left)
    if not options.keep and not failed:
        shutil.rmtree(root)
    elif failed:
        print(f"everything is kept in {root}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
