"""What goes wrong while a run is under way: engines, nodes, disks, signals. Real Ray, real engines, the CLI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from evolve.config import RunConfig
from evolve.errors import RunStopped
from evolve.run import Run
from evolve.views import history

COMMAND = [sys.executable, "-c", "from evolve.cli import main; main()"]
FACTS = ("key", "state", "genotype", "recipe_hash", "fitness", "stderr", "parts", "failure")
LIMIT_SECONDS = 120  # a sitting takes about 15
GONE_SECONDS = 90  # after kill -9 some of Ray's helpers need a minute

pytestmark = pytest.mark.slow


class Sitting:
    """An `evolve` command under way."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / f"{len(list(folder.glob('*.log')))}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.started: dict[int, psutil.Process] = {}  # whom it had started when its engine was last asked for

    def wait_until(self, what: Callable[[], Any], seconds: float = LIMIT_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not what():
            if self.process.poll() is not None or time.monotonic() > end:
                self.abandon()
                pytest.fail(f"it ended early, or did not come to it: {self.said}")
            time.sleep(0.005)

    def wait(self, seconds: float = LIMIT_SECONDS) -> int:
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.abandon()
            raise

    def abandon(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def engine(self) -> psutil.Process:
        """The process of its only worker."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self.started.setdefault(child.pid, child)
        (found,) = [p for p in self.started.values() if p.is_running() and name_of(p).startswith("ray::Worker")]
        return found


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def evolve(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(evolve(folder, "history", name, "--json").stdout)
    return rows


def facts(rows: list[dict[str, Any]], *kinds: str) -> list[list[Any]]:
    return [[row[fact] for fact in FACTS] for row in rows if not kinds or row["kind"] in kinds]


def transcripts(run: Path) -> list[Path]:
    return sorted((run / "transcripts").glob("*.jsonl"))


def assert_nothing_is_torn(run: Path) -> None:
    for path in transcripts(run):
        assert [json.loads(line) for line in path.read_text().splitlines()]
    json.loads((run / "run.json").read_text())
    assert not [path.name for path in run.rglob("*") if path.name.endswith(".tmp")]


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=GONE_SECONDS)
    names = [f"{p.pid} {name_of(p)}" for p in alive]
    for process in alive:
        process.kill()
    assert not names


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, config_data: dict[str, Any]) -> Path:
    """A folder with a run config."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "run.yaml").write_text(yaml.safe_dump(config_data))
    return folder


@pytest.fixture(scope="module")
def reference(place: Path) -> list[dict[str, Any]]:
    """The history of a run to which nothing happens."""
    done = evolve(place, "run", "run.yaml", "--force", "--name", "reference")
    assert done.returncode == 0, done.stderr
    return rows_of(place, "reference")


# Engines


@pytest.fixture(scope="module")
def wounded(place: Path, llama: Any) -> list[dict[str, Any]]:
    """A run with a recipe of NaN, an engine that is killed, and one that hangs; its history."""
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": name, "parameters": {"weight": weight}} for name, weight in ((llama.one, 1e39), (llama.two, 1))
        ],
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    sitting = Sitting(
        place, "run", "run.yaml", "--force", "--name", "wounded",
        "--set", f"baselines.recipes={json.dumps([recipe])}", "--set", "workers.evaluation_timeout_seconds=5",
    )  # fmt: skip
    run = place / "runs" / "wounded"
    sitting.wait_until(lambda: len(transcripts(run)) >= 6)
    sitting.engine().kill()
    count = len(transcripts(run))
    sitting.wait_until(lambda: len(transcripts(run)) >= count + 5)
    sitting.engine().suspend()
    assert sitting.wait() == 0, sitting.said
    assert_gone(list(sitting.started.values()))
    return rows_of(place, "wounded")


def lost_to(rows: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    return [row for row in rows if any(text in lost["reason"] for lost in row["lost"])]


def test_an_evaluation_whose_engine_is_killed_is_made_again(wounded: list[dict[str, Any]]) -> None:
    (row,) = lost_to(wounded, "died")
    assert (row["state"], row["attempts"]) == ("complete", 2)


def test_an_evaluation_that_hangs_is_made_again(wounded: list[dict[str, Any]]) -> None:
    (row,) = lost_to(wounded, "longer than 5 s (workers.evaluation_timeout_seconds)")
    assert (row["state"], row["attempts"]) == ("complete", 2)


def test_a_recipe_that_overflows_is_failed_and_not_scored(wounded: list[dict[str, Any]]) -> None:
    failed = [row for row in wounded if row["state"] == "failed"]
    assert {(row["kind"], row["split"]) for row in failed} == {("baseline", "search"), ("baseline", "validation")}
    for row in failed:
        assert row["fitness"] is None
        assert any(word in row["failure"]["reason"] for word in ("NaN", "infinite", "finite"))


def test_what_workers_suffer_changes_no_result(wounded: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    kinds = ("parent", "search", "finalist")
    assert facts(wounded, *kinds) == facts(reference, *kinds)


def test_a_failure_is_shown_in_the_table_too(wounded: list[dict[str, Any]], place: Path) -> None:
    wide = {**os.environ, "COLUMNS": "300"}
    shown = evolve(place, "history", "wounded", env=wide).stdout
    assert shown.count("tried 2 times: worker 0: ") == 2


# Nodes


def test_a_run_outlives_one_of_its_two_nodes(place: Path, reference: list[dict[str, Any]]) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        sitting = Sitting(
            place, "run", "run.yaml", "--force", "--name", "nodes",
            "--set", f"workers.ray_address={cluster.address}", "--set", "workers.count=2",
            "--set", "workers.cpus_per_worker=1",
        )  # fmt: skip
        run = place / "runs" / "nodes"
        sitting.wait_until(lambda: len(transcripts(run)) >= 8)
        raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
        worker = [p for p in raylet.children(recursive=True) if name_of(p).startswith("ray::Worker")]
        cluster.remove_node(second, allow_graceful=False)
        for process in worker:  # goes with its machine; left to itself it may answer for seconds, until the run ends
            process.kill()
        assert sitting.wait() == 0, sitting.said
    finally:
        cluster.shutdown()
    rows = rows_of(place, "nodes")
    assert facts(rows) == facts(reference)
    lost = [lost for row in rows for lost in row["lost"]]
    assert lost, sitting.said
    assert {one["stage"] for one in lost} == {"worker"}


# Disks


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory; the test is skipped where it must not be mounted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, *, leave_bytes: int) -> Path:
    """Takes a disk's free space, but for so much, rounded up to blocks."""
    path = folder / "filler"
    with path.open("wb") as file:
        for _ in range(100):
            free = os.statvfs(folder)
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_bsize - leave_bytes))
            except OSError:  # a run that is under way took some of it meanwhile
                continue
            return path
    raise AssertionError("the disk never stood still")


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(place: Path, reference: list[dict[str, Any]]) -> None:
    with mounted(place / "full", "size=64m") as disk:
        at = ("--runs-dir", str(disk / "runs"))
        sitting = Sitting(place, "run", "run.yaml", "--force", "--name", "full", *at)
        run = disk / "runs" / "full"
        sitting.wait_until(lambda: len(transcripts(run)) >= 8)
        filler = fill(disk, leave_bytes=16_384)
        assert sitting.wait() == 3, sitting.said
        assert "no space" in sitting.said or "full" in sitting.said
        assert "Traceback" not in sitting.said
        assert sitting.said.count("stopped: ") == 1
        assert_nothing_is_torn(run)
        assert evolve(place, "show", "full", *at).returncode == 0
        filler.unlink()
        resumed = evolve(place, "resume", "full", *at)
        assert resumed.returncode == 0, resumed.stderr
        rows = json.loads(evolve(place, "history", "full", "--json", *at).stdout)
        assert facts(rows) == facts(reference)
        assert_nothing_is_torn(run)


@pytest.mark.parametrize("leave_kib", [0, 12, 80])
def test_wherever_the_last_block_falls_nothing_is_torn(
    leave_kib: int, make_config: Callable[..., RunConfig], landscape: Any, tmp_path: Path
) -> None:
    whole = Run.create(make_config(), runs_dir=tmp_path, name="whole")
    whole.execute(landscape(whole.transcripts))
    with mounted(tmp_path / "disk", "size=64m") as disk:
        run = Run.create(make_config(), runs_dir=disk, name="full")
        evaluator = landscape(run.transcripts)
        score = evaluator.fitness

        def filling(job: Any) -> Any:
            if len(evaluator.evaluated) == 8:
                fill(disk, leave_bytes=leave_kib * 1024)
            return score(job)

        evaluator.fitness = filling
        with pytest.raises(RunStopped):
            run.execute(evaluator)
        assert_nothing_is_torn(run.folder)
        (disk / "filler").unlink()
        run = Run.open("full", runs_dir=disk)
        run.execute(landscape(run.transcripts))
        assert facts(history(run)) == facts(history(whole))
        assert_nothing_is_torn(run.folder)


def test_an_unwritable_folder_is_a_mistake_in_one_message(place: Path) -> None:
    with mounted(place / "readonly", "ro") as disk:
        done = evolve(place, "run", "run.yaml", "--force", "--name", "never", "--runs-dir", str(disk / "runs"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert str(disk) in done.stderr


# Signals


@pytest.fixture(scope="module")
def interrupted(place: Path) -> dict[str, Any]:
    """One run, interrupted in every way and resumed each time, its engine stopped so that nothing ends by chance.

    A stopped engine stands for a long evaluation: it is in flight until the test lets it go on.
    """
    run = place / "runs" / "signals"
    found: dict[str, Any] = {}
    started: list[psutil.Process] = []

    def begin(*arguments: str) -> tuple[Sitting, psutil.Process, int]:
        sitting = Sitting(place, *arguments)
        count = len(transcripts(run))
        sitting.wait_until(lambda: len(transcripts(run)) >= count + 3)
        engine = sitting.engine()
        engine.suspend()
        time.sleep(0.3)  # what was answered before is recorded
        return sitting, engine, len(transcripts(run))

    def end(case: str, sitting: Sitting) -> None:
        begun = time.monotonic()
        found[case] |= {"code": sitting.wait(), "seconds": time.monotonic() - begun, "said": sitting.said}
        started.extend(sitting.started.values())

    # First, so that what Ray leaves for a minute after such an ending goes while the others take their time.
    sitting, engine, count = begin("run", "run.yaml", "--force", "--name", "signals")
    found["thrice"] = {}
    for _ in range(3):
        with suppress(ProcessLookupError):
            sitting.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    end("thrice", sitting)

    sitting, engine, count = begin("resume", "signals")
    sitting.process.send_signal(signal.SIGINT)
    sitting.wait_until(lambda: "in flight" in sitting.said, 10)
    time.sleep(1)
    found["once"] = {"waited": sitting.process.poll() is None}
    engine.resume()
    end("once", sitting)
    found["once"]["more"] = len(transcripts(run)) - count

    sitting, engine, count = begin("resume", "signals")
    sitting.process.send_signal(signal.SIGTERM)
    sitting.wait_until(lambda: "in flight" in sitting.said, 10)
    found["twice"] = {}
    sitting.process.send_signal(signal.SIGTERM)
    end("twice", sitting)
    found["twice"]["more"] = len(transcripts(run)) - count

    sitting, engine, count = begin("resume", "signals", "--set", "stop=now")
    found["now"] = {}
    sitting.process.send_signal(signal.SIGINT)
    end("now", sitting)
    found["now"]["more"] = len(transcripts(run)) - count

    done = evolve(place, "resume", "signals")
    assert done.returncode == 0, done.stderr
    assert_gone(started)
    found["rows"] = rows_of(place, "signals")
    return found


@pytest.mark.parametrize("case", ["once", "twice", "now", "thrice"])
def test_a_signal_ends_with_130_and_says_how_to_go_on(case: str, interrupted: dict[str, Any]) -> None:
    assert interrupted[case]["code"] == 130, interrupted[case]["said"]
    assert "Traceback" not in interrupted[case]["said"]
    if case != "thrice":  # the third ends at once, without a word
        assert "evolve resume signals" in interrupted[case]["said"]


def test_the_first_signal_waits_for_what_is_in_flight(interrupted: dict[str, Any]) -> None:
    assert interrupted["once"]["waited"]
    assert interrupted["once"]["more"] == 1


@pytest.mark.parametrize("case", ["twice", "now"])
def test_the_second_signal_and_stop_now_do_not_wait(case: str, interrupted: dict[str, Any]) -> None:
    assert interrupted[case]["more"] == 0
    assert interrupted[case]["seconds"] < 30


def test_whatever_interrupted_it_a_resumed_run_has_the_same_history(
    interrupted: dict[str, Any], reference: list[dict[str, Any]]
) -> None:
    assert facts(interrupted["rows"]) == facts(reference)
