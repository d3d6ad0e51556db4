"""Machine, disk and database of a run as ``evolve check`` sees them; no engine, and Ray only where it is named."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from evolve.config import RunConfig
from evolve.machine_checks import disk_finding, machines_of, memory_findings, storage_finding, worker_findings
from evolve.prepare import Prepared, prepare
from fitness.findings import Finding
from workers.errors import EngineSetupError
from workers.machine import Node, Resources
from workers.memory import footprint

MakeConfig = Callable[..., RunConfig]
GIB = 2**30


@pytest.fixture
def ready(make_config: MakeConfig, tmp_path: Path) -> Callable[..., Prepared]:
    def make(**changes: Any) -> Prepared:
        return prepare(make_config(**changes), tmp_path)

    return make


@pytest.fixture
def closed_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- machines and workers ---------------------------------------------------------------------------------------


def test_without_an_address_there_is_this_machine(make_config: MakeConfig) -> None:
    (node,) = machines_of(make_config())
    assert node.cpus >= 1
    assert node.memory_bytes > 0


def test_a_cluster_that_nobody_answers_for_is_an_error_within_a_minute(
    make_config: MakeConfig, closed_port: int
) -> None:
    begun = time.monotonic()
    with pytest.raises(EngineSetupError, match=r"could not connect to 127\.0\.0\.1:\d+ .*workers\.ray_address"):
        machines_of(make_config(**{"workers.ray_address": f"127.0.0.1:{closed_port}"}))
    assert time.monotonic() - begun < 60


def test_workers_with_a_core_each_fit(ready: Callable[..., Prepared]) -> None:
    finding, each = worker_findings(ready(**{"workers.count": 4}), [Node(8)])
    assert finding.level == "ok"
    assert each == Resources(4, 2, 0)
    assert "4 worker(s) with 2 CPUs and 0 GPUs each, on 8 cores and 0 GPUs" in finding.message


def test_more_gpus_than_there_are_is_an_error(ready: Callable[..., Prepared]) -> None:
    prepared = ready(**{"workers.count": 2, "workers.gpus_per_worker": 3})
    finding, each = worker_findings(prepared, [Node(8, 4)])
    assert (finding.level, each) == ("error", None)
    assert "2 workers with 3 GPUs each need 6" in finding.message
    assert "workers.gpus_per_worker" in finding.message


def test_more_cores_than_this_machine_has_is_a_warning_and_in_a_cluster_an_error(
    ready: Callable[..., Prepared],
) -> None:
    asked = {"workers.count": 2, "workers.cpus_per_worker": 8}
    finding, each = worker_findings(ready(**asked), [Node(4)])
    assert (finding.level, each) == ("warning", Resources(2, 8, 0))
    assert "wait for each other" in finding.message
    assert "workers.cpus_per_worker" in finding.remedy
    finding, each = worker_findings(ready(**asked, **{"workers.ray_address": "auto"}), [Node(4)])
    assert (finding.level, each) == ("error", None)


def test_more_workers_than_cores_is_a_warning(ready: Callable[..., Prepared]) -> None:
    finding, each = worker_findings(ready(**{"workers.count": 3}), [Node(2)])
    assert (finding.level, each) == ("warning", Resources(3, 1, 0))


# --- memory -----------------------------------------------------------------------------------------------------


def levels(findings: list[Finding]) -> list[str]:
    return [one.level for one in findings]


def test_memory_is_judged_on_every_machine_and_what_is_fine_is_said_once(ready: Callable[..., Prepared]) -> None:
    prepared = ready(**{"workers.count": 4, "workers.ray_address": "auto"})
    own = footprint(prepared.spec, method="task_arithmetic", on_gpu=False).own
    roomy, small = Node(2, memory_bytes=9 * own), Node(2, memory_bytes=2 * own - 1)
    each = Resources(4, 1, 0)
    assert levels(memory_findings(prepared, [roomy, roomy], each)) == ["ok"]
    (found,) = memory_findings(prepared, [roomy, small], each)
    assert (found.level, found.evidence["workers"]) == ("warning", 2)
    assert levels(memory_findings(prepared, [small, small], each)) == ["warning", "warning"]


def test_a_machine_that_gets_no_worker_is_not_judged(ready: Callable[..., Prepared]) -> None:
    prepared = ready(**{"workers.count": 2, "workers.ray_address": "auto"})
    tiny = Node(2, memory_bytes=1)
    assert levels(memory_findings(prepared, [Node(2, memory_bytes=99 * GIB), tiny], Resources(2, 1, 0))) == ["ok"]


def test_all_workers_of_one_machine_count_even_where_they_wait_for_each_other(ready: Callable[..., Prepared]) -> None:
    prepared = ready(**{"workers.count": 3})
    (found,) = memory_findings(prepared, [Node(1, memory_bytes=99 * GIB)], Resources(3, 1, 0))
    assert found.evidence["workers"] == 3


def test_a_peak_that_was_seen_is_believed_where_it_is_higher(ready: Callable[..., Prepared]) -> None:
    prepared = ready()
    need = footprint(prepared.spec, method="task_arithmetic", on_gpu=False)
    machines, each = [Node(4, memory_bytes=2 * need.own)], Resources(1, 1, 0)
    assert levels(memory_findings(prepared, machines, each, peak_bytes=1)) == ["ok"]
    (found,) = memory_findings(prepared, machines, each, peak_bytes=3 * need.own)
    assert found.level == "warning"


# --- disk and database ------------------------------------------------------------------------------------------


def test_the_disk_is_looked_at_where_the_runs_will_be(ready: Callable[..., Prepared], tmp_path: Path) -> None:
    found = disk_finding(ready(), tmp_path / "not" / "there")
    assert found.level == "ok"
    assert found.evidence["most_bytes"] > 0
    assert not (tmp_path / "not").exists()


def test_answers_that_no_disk_holds_are_refused_or_warned_of(ready: Callable[..., Prepared], tmp_path: Path) -> None:
    prepared = ready()
    free = shutil.disk_usage(tmp_path).free
    plan = replace(prepared.plan, total_evaluations=free // 1000)  # each takes more than 64 KiB
    found = disk_finding(replace(prepared, plan=plan), tmp_path)
    assert found.level == ("warning" if free >= 64 * 2**20 else "error")
    assert "--runs-dir" in found.remedy


def test_a_folder_that_is_not_there_yet_is_not_made(make_config: MakeConfig, tmp_path: Path) -> None:
    found = storage_finding(make_config(), tmp_path / "not" / "there")
    assert (found.level, found.where) == ("ok", str(tmp_path / "not" / "there"))
    assert entries(tmp_path) == []


def test_a_folder_below_a_plain_file_is_an_error(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = storage_finding(make_config(), tmp_path / "file" / "runs")
    assert found.level == "error"
    assert str(tmp_path / "file") in found.message
    assert "--runs-dir" in found.remedy
    json.dumps(found.to_dict())


def test_a_database_that_works_is_left_without_a_study(make_config: MakeConfig, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/history.db"
    optuna.create_study(storage=url, study_name="made")
    optuna.delete_study(study_name="made", storage=url)
    found = storage_finding(make_config(**{"store.url": url}), tmp_path / "runs")
    assert (found.level, found.where) == ("ok", "store.url")
    assert optuna.get_all_study_names(url) == []
    assert entries(tmp_path) == ["history.db"]


def test_a_database_file_that_is_not_there_yet_is_not_made(make_config: MakeConfig, tmp_path: Path) -> None:
    found = storage_finding(make_config(**{"store.url": f"sqlite:///{tmp_path}/history.db"}), tmp_path)
    assert (found.level, found.where) == ("ok", "store.url")
    assert entries(tmp_path) == []


def test_a_file_that_is_no_database_is_an_error_and_stays(make_config: MakeConfig, tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    file.write_text("no database, but a letter. " * 99)
    found = storage_finding(make_config(**{"store.url": f"sqlite:///{file}"}), tmp_path)
    assert (found.level, found.where) == ("error", "store.url")
    assert file.read_text().startswith("no database")


def test_studies_of_others_stay(make_config: MakeConfig, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/history.db"
    optuna.create_study(storage=url, study_name="theirs")
    assert storage_finding(make_config(**{"store.url": url}), tmp_path).level == "ok"
    assert optuna.get_all_study_names(url) == ["theirs"]


def test_a_database_that_cannot_be_reached_is_an_error_without_its_password(
    make_config: MakeConfig, tmp_path: Path, closed_port: int
) -> None:
    url = f"postgresql+psycopg://me:secret@127.0.0.1:{closed_port}/evolve"
    found = storage_finding(make_config(**{"store.url": url}), tmp_path)
    assert (found.level, found.where) == ("error", "store.url")
    assert "secret" not in json.dumps(found.to_dict())
    assert "***" in found.message
    assert str(closed_port) in found.message
    assert "store.url" in found.remedy


@pytest.mark.parametrize("url", ["nonsense", "oracle://host/name", "sqlite:////no/such/folder/history.db"])
def test_what_is_no_database_is_one_finding(make_config: MakeConfig, tmp_path: Path, url: str) -> None:
    assert storage_finding(make_config(**{"store.url": url}), tmp_path).level == "error"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without GPUs")
def test_gpus_where_there_are_none_is_an_error_of_the_whole_check(make_config: MakeConfig) -> None:
    from evolve.check import check

    report = check(make_config(**{"workers.gpus_per_worker": 1}), weights=False, ask=False)
    (found,) = [one for one in report.findings if one.check == "machine"]
    assert found.level == "error"
    assert not [one for one in report.findings if one.check == "memory"]
