"""Whether the machine, or the cluster, the disk and the database have what a run needs. Starts no engine."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from evolve.config import RunConfig
from evolve.environment import check_space
from evolve.errors import RunStopped, StoreError
from evolve.judging import gpus_of, judges_of
from evolve.prepare import Prepared, disk_bytes
from evolve.resources import cache_dir
from evolve.storage import masked
from evolve.store import Store
from fitness.errors import UserMistake
from fitness.findings import Finding
from fitness.judge_config import LocalJudgeConfig
from workers.cluster import least_cpus, survey
from workers.errors import EngineSetupError
from workers.machine import Node, Resources, places, share_out, this_machine
from workers.memory import PROCESS_BYTES, footprint, memory_finding


def machines_of(config: RunConfig) -> list[Node]:
    """The machines that a run's workers will find.

    Raises:
        EngineSetupError: the cluster cannot be reached.
    """
    address = config.workers.ray_address
    return [this_machine()] if address is None else survey(address)


def seen_by_all(config: RunConfig) -> Path | None:
    """Where a check's own files lie: where workers on other machines see them too; ``None``: anywhere."""
    if config.workers.ray_address is None:
        return None
    folder = cache_dir() / "checks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def worker_findings(prepared: Prepared, machines: Sequence[Node]) -> tuple[Finding, Resources | None]:
    """Whether all workers find room beside the local judges, and what each gets; ``None`` where they do not."""
    config, where = prepared.config.workers, "workers"
    asked = least_cpus(prepared.workers, config.cpus_per_worker)
    granted = _beside_judges(machines, sum(gpus_of(one) for one in judges_of(prepared.config).values()))
    if config.ray_address is None:  # Ray on this machine is started with as many CPUs as are asked for
        granted = [replace(one, cpus=max(one.cpus, asked)) for one in granted]
    try:
        each = share_out(
            granted,
            ranks=config.tensor_parallel_size,
            count=prepared.workers,
            cpus=config.cpus_per_worker,
            gpus=config.gpus_per_worker,
        )
    except EngineSetupError as error:
        return Finding("machine", "error", where, str(error), "Mend what it names."), None
    have = ", ".join(f"{one.cpus:g} cores and {one.gpus:g} GPUs" for one in machines)
    text = f"{each.count} worker(s) with {each.cpus:g} CPUs and {each.gpus:g} GPUs each, on {have}"
    if places(machines, cpus=each.cpus, gpus=each.gpus) < each.count:
        remedy = "Lower workers.count or workers.cpus_per_worker, unless this is meant."
        return Finding("machine", "warning", where, f"{text}: they will wait for each other", remedy), each
    return Finding("machine", "ok", where, text), each


def memory_findings(
    prepared: Prepared, machines: Sequence[Node], each: Resources, *, peak_bytes: int | None = None
) -> list[Finding]:
    """Whether every machine has the memory for its workers.

    Args:
        prepared: the checked config.
        machines: from :func:`machines_of`.
        each: from :func:`worker_findings`.
        peak_bytes: largest resident memory of a worker, where one was watched.
    """
    spec = prepared.spec
    need = footprint(spec, method=prepared.config.genome.merge_method, on_gpu=each.gpus > 0)
    if peak_bytes is not None and spec.tensor_parallel_size == 1:  # of several ranks only one was watched
        need = need.measured(peak_bytes)
    beside = _judges_bytes(prepared.config)
    left, findings = each.count, []
    for node in machines:
        here = left if len(machines) == 1 else min(left, places([node], cpus=each.cpus, gpus=each.gpus))
        left -= here
        if here:
            finding = memory_finding(need, node, workers=here, spec=spec, gpus=each.gpus, beside=beside)
            findings.append(finding)
            beside = 0  # they run on one of the machines
    worst = [one for one in findings if one.level != "ok"]
    return worst or findings[:1]


def _beside_judges(machines: Sequence[Node], gpus: float) -> list[Node]:
    """The machines without the GPUs that local judges take, those with most first."""
    left = []
    for one in sorted(machines, key=lambda node: -node.gpus):
        taken = min(gpus, one.gpus)
        gpus -= taken
        left.append(replace(one, gpus=one.gpus - taken))
    return left


def _judges_bytes(config: RunConfig) -> int:
    """Main memory of local judges that run on CPUs, in float32."""
    total = 0
    for one in judges_of(config).values():
        if isinstance(one, LocalJudgeConfig) and not gpus_of(one):
            folder = config.root / one.folder.expanduser()
            stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            total += 2 * stored + one.kv_cache_gib * 2**30 + PROCESS_BYTES
    return total


def disk_finding(prepared: Prepared, runs_dir: Path) -> Finding:
    """Whether answers and history find room."""
    folder, needed = _existing(runs_dir), disk_bytes(prepared, prepared.plan.total_evaluations)
    where = str(runs_dir.resolve())
    try:
        shortage = check_space(folder, needed)
    except StoreError as error:
        return Finding("disk", "error", where, str(error), "Free some space, or choose another --runs-dir.")
    if shortage:
        return Finding("disk", "warning", where, shortage, "Free some space, or choose another --runs-dir.")
    text = f"There is room for answers and history, {needed / 2**20:.0f} MiB at most."
    return Finding("disk", "ok", where, text, evidence={"most_bytes": needed})


def storage_finding(config: RunConfig, runs_dir: Path) -> Finding:
    """Whether the history can be written: a study is made and removed again where a database is named."""
    folder, where = _existing(runs_dir), str(runs_dir.resolve())
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".check-"):
            pass
    except OSError as error:
        text = f"{folder} cannot be written: {error.strerror}."
        return Finding("storage", "error", where, text, "Choose another --runs-dir, or mend its permissions.")
    if config.store.url is None:
        return Finding("storage", "ok", where, "The run's folder can be written; the history is an SQLite file there.")
    file = _sqlite_file(config.store.url)
    if file is not None and not file.exists():  # a check leaves nothing behind
        if _existing(file.parent) != file.parent.resolve():
            text = f"{file.parent} does not exist, where the database is to lie."
            return Finding("storage", "error", "store.url", text, "Make the folder, or mend store.url.")
        return Finding("storage", "ok", "store.url", f"{file} is to be made, and its folder is there.")
    try:
        store = Store(config.store.url, f"check-{uuid.uuid4().hex}", create=True)
        store.delete()
        store.close()
    except (UserMistake, RunStopped) as error:
        remedy = "Start the database, mend store.url, or leave it out: SQLite in the run's folder needs no server."
        return Finding("storage", "error", "store.url", str(error), remedy)
    return Finding("storage", "ok", "store.url", f"{masked(config.store.url)} can be reached and written.")


def _sqlite_file(url: str) -> Path | None:
    """Where an SQLite database lies; ``None`` for other databases, and for what is no address: opening it says so."""
    try:
        address = make_url(url)
    except ArgumentError:
        return None
    return Path(address.database) if address.get_backend_name() == "sqlite" and address.database else None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.resolve()
    return next(one for one in (folder, *folder.parents) if one.exists())
