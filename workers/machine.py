"""What a machine has, and whether so many workers find room on one or several."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.errors import EngineSetupError

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Node:
    """One machine.

    Attributes:
        cpus: cores that may be used.
        gpus: GPUs that may be used.
        memory_bytes: main memory; 0: unknown.
        gpu_bytes: memory of its smallest GPU; 0: none, or unknown.
    """

    cpus: float
    gpus: float = 0.0
    memory_bytes: int = 0
    gpu_bytes: int = 0


@dataclass(frozen=True)
class Resources:
    """What workers get.

    Attributes:
        count: workers.
        cpus: CPUs per worker.
        gpus: GPUs per worker.
    """

    count: int
    cpus: float
    gpus: float


def this_machine() -> Node:
    """The machine of this process: what it may use, not what is built in."""
    gpus = torch.cuda.device_count()
    return Node(usable_cores(), gpus, _memory_bytes(), _smallest_gpu_bytes() if gpus else 0)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(
    nodes: Sequence[Node], *, ranks: int, count: int | None, cpus: float | None, gpus: float | None
) -> Resources:
    """Completes what was asked for from what there is. A worker with all its ranks stays on one machine.

    Args:
        nodes: the machines.
        ranks: GPUs or CPU ranks of one engine.
        count: workers; ``None``: as many as the GPUs suffice for, else 1.
        cpus: CPUs per worker; ``None``: all that there are, divided.
        gpus: GPUs per worker; ``None``: ``ranks`` where there are GPUs.

    Raises:
        EngineSetupError: there is less.
    """
    total_gpus, total_cpus = sum(one.gpus for one in nodes), sum(one.cpus for one in nodes)
    gpus = gpus if gpus is not None else (float(ranks) if total_gpus else 0.0)
    count = count or (max(1, _units(total_gpus) // _units(gpus)) if gpus else 1)
    if cpus is None:  # the most with which all find room
        most = range(int(total_cpus // count), 1, -1)
        cpus = float(next((n for n in most if places(nodes, cpus=n, gpus=gpus) >= count), 1))
    remedy = "or make more visible (CUDA_VISIBLE_DEVICES)."
    for what, each, total in (("GPUs", gpus, total_gpus), ("CPUs", cpus, total_cpus)):
        if count * _units(each) > _units(total):
            raise EngineSetupError(
                f"{count} workers with {each:g} {what} each need {count * each:g}, and Ray sees {total:g}. "
                f"Lower workers.count, workers.{what.lower()}_per_worker or workers.tensor_parallel_size, {remedy}"
            )
    found = places(nodes, cpus=cpus, gpus=gpus)
    if found < count:
        raise EngineSetupError(
            f"{count} workers with {cpus:g} CPUs and {gpus:g} GPUs each do not fit on {len(nodes)} machines, which "
            f"have room for {found}: a worker stays on one of them. Lower workers.count, workers.cpus_per_worker or "
            f"workers.tensor_parallel_size, {remedy}"
        )
    return Resources(count, cpus, gpus)


def places(nodes: Sequence[Node], *, cpus: float, gpus: float) -> int:
    """How many workers find room, each on one machine.

    Args:
        nodes: the machines.
        cpus: per worker, above 0.
        gpus: per worker.
    """

    def here(one: Node) -> int:
        by_cpus = _units(one.cpus) // _units(cpus)
        return min(by_cpus, _units(one.gpus) // _units(gpus)) if gpus else by_cpus

    return sum(map(here, nodes))


def _units(amount: float) -> int:
    """In the ten-thousandths that Ray counts in: of binary fractions five times 0.2 need not fit into 1."""
    return max(1, round(amount * 10_000)) if amount else 0


def _memory_bytes() -> int:
    """Physical memory, or less where a container or a batch job has a limit."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _limits():
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        sizes += [int(text)] if text.isdigit() and int(text) > 0 else []
    return min(sizes)


def _limits() -> Iterator[Path]:
    """Files that may limit the memory of this process: of its control group, and of every one above it.

    https://www.kernel.org/doc/html/latest/admin-guide/cgroup-v2.html, and v1 where that is mounted.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:  # 0::/path, or 4:memory:/path
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _CGROUPS / controllers
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        group = root / name.lstrip("/")
        yield from (one / file for one in (group, *group.parents) if one.is_relative_to(root))


def _smallest_gpu_bytes() -> int:
    """Asks the driver's tool: torch would keep a context, and its memory, on a GPU that a worker needs."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return min((int(mib) * 2**20 for mib in re.findall(r"^\s*(\d+)\s*$", done.stdout, re.MULTILINE)), default=0)
