"""The history on real databases: killed writers, other readers, a PostgreSQL server, the dashboard over HTTP.

Run as a script it is the writer that gets killed: ``python test_storages.py URL ACKNOWLEDGED KILLS SEED``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import make_url

from evolve.errors import StoreError
from evolve.evaluation import Candidate, Evaluation
from evolve.genome import Coordinate
from evolve.outcome import Failed
from evolve.store import Store, default_url
from fitness.aggregate import Fitness
from workers.recipe import Recipe

NAME = "run-1"
PASSWORD = "s3cret"
COORDINATES = tuple(
    Coordinate(f"weight of persona, layers {i}-{i}, mlp", "weight", 0, i, 0, -1.0, 2.0, 0.5, "linear")
    for i in range(32)
)


def row(number: int) -> Evaluation:
    chance = random.Random(number)
    genotype = tuple(chance.random() for _ in COORDINATES)
    recipe = Recipe({"merge_method": "linear", "slices": [{"weight": c.decode(x)} for c, x in _pairs(genotype)]})
    key, label = f"search-{number:05d}", f"candidate {number // 16}.{number % 16}"
    candidate = Candidate(key, "search", label, recipe, "search", 1, number // 16, number % 16, genotype)
    result = Failed("merge", "NaN in 語") if number % 7 == 6 else Fitness(chance.random(), 0.1, 4, 4, {"ended": 1.0})
    return Evaluation(candidate, result, {"merge": 0.5}, f"{key}.jsonl")


def add(store: Store, evaluation: Evaluation) -> Evaluation:
    values = {c.name: c.decode(x) for c, x in _pairs(evaluation.candidate.genotype or ())}
    return store.add(evaluation, COORDINATES, values)


def _pairs(genotype: tuple[float, ...]) -> list[tuple[Coordinate, float]]:
    return list(zip(COORDINATES, genotype, strict=True)) if genotype else []


def write_until_killed(url: str, acknowledged: Path) -> None:
    """Goes on with the rows of those before it; every row that ``add`` acknowledged must still be there."""
    store = Store(url, NAME)
    keys = acknowledged.read_text().split()
    lost = [key for key in keys if key not in store]
    assert not lost, f"lost: {lost}"
    with acknowledged.open("ab", buffering=0) as file:
        for number in range(len(store), 10_000):
            file.write(f"{add(store, row(number)).candidate.key}\n".encode())


def be_killed(url: str, acknowledged: Path, kills: int, seed: int) -> None:
    """Forks writers, so that a kill does not cost the seconds that imports take."""
    Store("sqlite://", "warm up", create=True)
    chance = random.Random(seed)
    for number in range(kills):
        before = len(acknowledged.read_text().split())
        child = os.fork()
        if child == 0:
            try:
                write_until_killed(url, acknowledged)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        time.sleep(chance.uniform(0.05, 0.6))
        end = time.monotonic() + 30
        # On a slow machine, too, most fall among rows, and every fifth wherever it may.
        while number % 5 and len(acknowledged.read_text().split()) < before + 2 and time.monotonic() < end:
            time.sleep(chance.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"


def survive_kills(url: str, folder: Path, kills: int) -> int:
    """Kills the writers of a new store and checks what they left; gives the number of acknowledged rows."""
    Store(url, NAME, create=True)
    acknowledged = folder / "acknowledged"
    acknowledged.touch()
    subprocess.run([sys.executable, __file__, url, str(acknowledged), str(kills), "0"], check=True, timeout=240)
    store = Store(url, NAME)
    keys = [summary.key for summary in store.summaries()]
    told = acknowledged.read_text().split()
    assert set(told) <= set(keys)
    assert len(told) >= len(keys) - kills  # between a commit and its acknowledgement there is at most one row
    assert keys == [f"search-{number:05d}" for number in range(len(keys))]
    assert list(store.rows()) == [replace(row(number), number=number) for number in range(len(keys))]
    trials = optuna.load_study(storage=url, study_name=NAME).get_trials(deepcopy=False)
    assert [t.number for t in trials] == list(range(len(keys)))
    assert all(t.state.is_finished() and len(t.params) == len(COORDINATES) for t in trials)
    return len(told)


@dataclass
class Server:
    """A PostgreSQL server in a temporary folder."""

    folder: Path
    port: int
    control: list[str]

    def url(self, database: str = "postgres", password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://evolve:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        # Without fsync: a killed client must lose nothing; a killed server is PostgreSQL's own matter.
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -F"
        self._run("-w", "-t", "60", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("-w", "-t", "60", "-m", "immediate", "stop")

    def _run(self, *arguments: str) -> None:
        subprocess.run([*self.control, *arguments], check=True, timeout=90, cwd="/", stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    pytest.importorskip("psycopg")
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not binaries:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql (Debian's package: postgresql)")
    root = os.geteuid() == 0  # PostgreSQL refuses to run as root; Debian's package brings a user for it
    prefix = ["runuser", "-u", "postgres", "--"] if root else []
    folder = Path(tempfile.mkdtemp(prefix="evolve-postgres-"))
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if root:
            for path in (folder, secret):
                shutil.chown(path, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        data = str(folder / "data")
        initdb = [str(binaries[-1] / "initdb"), "-D", data, "-U", "evolve", "-A", "scram-sha-256", "--no-sync"]
        subprocess.run(
            [*prefix, *initdb, "-E", "UTF8", "--locale=C", f"--pwfile={secret}"],
            check=True,
            timeout=90,
            cwd="/",
            stdout=subprocess.DEVNULL,
        )
        server = Server(folder, port, [*prefix, str(binaries[-1] / "pg_ctl"), "-D", data])
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(postgres: Server, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    import psycopg

    name = f"test_{abs(hash(request.node.name))}"
    plain = make_url(postgres.url()).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return postgres.url(name)


def test_a_killed_writer_loses_tears_and_doubles_nothing_in_sqlite(tmp_path: Path) -> None:
    assert survive_kills(default_url(tmp_path), tmp_path, kills=25) > 25
    with sqlite3.connect(tmp_path / "history.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_killed_writer_loses_tears_and_doubles_nothing_in_postgresql(database: str, tmp_path: Path) -> None:
    assert survive_kills(database, tmp_path, kills=25) > 25


READER = """
import sys, optuna
while True:
    study = optuna.load_study(storage=sys.argv[1], study_name=sys.argv[2])
    trials = study.get_trials()
    assert all(t.state.is_finished() and len(t.params) == 32 for t in trials), "half a row"
    print(len(trials), flush=True)
"""


def test_another_process_that_reads_all_the_time_does_not_break_the_writer(tmp_path: Path) -> None:
    url = default_url(tmp_path)
    store = Store(url, NAME, create=True)
    reader = subprocess.Popen([sys.executable, "-c", READER, url, NAME], stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "0\n"  # it is at it
        for number in range(100):
            add(store, row(number))
        assert reader.poll() is None
    finally:
        reader.kill()
        seen = [int(line) for line in reader.communicate(timeout=30)[0].split()]
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert len(Store(url, NAME)) == 100


def test_a_store_lives_on_postgresql(database: str) -> None:
    store = Store(database, NAME, create=True)
    store.describe({"config": {"store": {"url": database}}, "plan": {"popsize": 4}})
    added = [add(store, row(number)) for number in range(20)]
    other = replace(row(20), candidate=Candidate("parent-00", "parent", "a", Recipe({"models": ["語"]}), "search"))
    added.append(add(store, other))
    reopened = Store(database, NAME)
    assert list(reopened.rows()) == list(store.rows()) == added
    assert reopened.summaries() == store.summaries()
    assert [reopened.get(one.candidate.key) for one in added] == added
    with pytest.raises(ValueError, match="search-00003 is recorded already"):
        add(reopened, row(3))
    study = optuna.load_study(storage=database, study_name=NAME)
    assert [t.state is TrialState.FAIL for t in study.trials] == [one.value is None for one in added[:20]]
    assert study.best_value == max(one.value for one in added[:20] if one.value is not None)
    assert PASSWORD not in json.dumps(study.user_attrs)
    assert study.user_attrs["config"]["store"]["url"] == database.replace(PASSWORD, "***")
    study.enqueue_trial({})
    assert len(Store(database, NAME)) == 21
    reopened.delete()
    with pytest.raises(StoreError, match="has no study named run-1") as caught:
        Store(database, NAME)
    assert PASSWORD not in str(caught.value)


def test_the_second_of_two_stores_with_one_name_is_refused(database: str) -> None:
    add(Store(database, NAME, create=True), row(0))
    with pytest.raises(StoreError, match=r"postgresql\+psycopg://evolve:\*\*\*@.* has a study named run-1 already"):
        Store(database, NAME, create=True)
    assert len(Store(database, NAME)) == 1


RIVAL = """
import sys
from evolve.store import Store
Store("sqlite://", "warm up", create=True)
print("ready", flush=True)
sys.stdin.readline()
Store(sys.argv[1], sys.argv[2], create=True)
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_one_of_three_drivers_gets_the_name_where_all_make_the_tables(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = default_url(tmp_path) if kind == "sqlite" else request.getfixturevalue("database")
    pipe = subprocess.PIPE
    rivals = [
        subprocess.Popen([sys.executable, "-c", RIVAL, url, NAME], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(3)
    ]
    for rival in rivals:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    said = [rival.communicate(timeout=60)[1] for rival in rivals]
    assert sorted(rival.returncode for rival in rivals) == [0, 1, 1], said
    assert sum("has a study named run-1 already" in text for text in said) == 2, said


def test_a_server_that_restarts_between_evaluations_does_not_stop_the_run(postgres: Server, database: str) -> None:
    store = Store(database, NAME, create=True)
    add(store, row(0))
    postgres.stop()
    postgres.start()
    add(store, row(1))
    assert list(store.rows()) == list(Store(database, NAME).rows())


@pytest.mark.parametrize("wrong", ["wr0ng", "wr0ng%40:%2Fx", "{wr0ng}"])
def test_a_refused_password_is_not_echoed(postgres: Server, wrong: str) -> None:
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        Store(postgres.url(password=wrong), NAME)
    assert "wr0ng" not in str(caught.value)


class _Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    with make_server("127.0.0.1", 0, app, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


def test_the_dashboard_shows_the_search_with_mergekits_parameters(tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    store = Store(default_url(tmp_path), NAME, create=True)
    added = [add(store, row(number)) for number in range(8)]
    with serving(dashboard.wsgi(default_url(tmp_path))) as address:
        studies = _json(f"{address}/api/studies")["study_summaries"]
        (search,) = (one for one in studies if one["study_name"] == NAME)
        shown = _json(f"{address}/api/studies/{search['study_id']}?after=0")["trials"]
    assert {one["study_name"] for one in studies} == {NAME, f"{NAME}/others"}
    assert [t["state"] for t in shown] == ["Fail" if one.value is None else "Complete" for one in added]
    assert [t["values"][0] for t in shown if t["state"] == "Complete"] == [
        one.value for one in added if one.value is not None
    ]
    for trial, one in zip(shown, added, strict=True):
        expected = {c.name: c.decode(x) for c, x in _pairs(one.candidate.genotype or ())}
        assert {p["name"]: float(p["param_external_value"]) for p in trial["params"]} == expected


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.load(reply)


if __name__ == "__main__":
    be_killed(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
