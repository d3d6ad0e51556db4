"""The Ray cluster: an existing one, or one on this machine for the life of a pool."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from contextlib import suppress
from typing import Any

import ray

from workers.errors import EngineSetupError, last_line
from workers.machine import Node, usable_cores

_ANSWER_SECONDS = 10.0


def connect(address: str | None, cpus: int) -> bool:
    """Connects this process to Ray.

    Args:
        address: of an existing cluster; ``None``: one is started on this machine.
        cpus: least CPUs of a cluster that is started.

    Returns:
        Whether a connection was made that must be ended; false where the process had one.

    Raises:
        EngineSetupError: Ray cannot be reached or started.
    """
    if ray.is_initialized():
        return False
    if address is not None and not _answers(address):
        raise EngineSetupError(
            f"Ray could not connect to {address} (nobody answers there within {_ANSWER_SECONDS:g} s). "
            "Check workers.ray_address."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray otherwise hides the GPUs from processes that reserve none, and warns about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        options["address"] = address
    else:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "num_cpus": max(usable_cores(), cpus),
            "object_store_memory": 256 * 2**20,  # only prompts and answers pass through it
        }
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or "a local cluster"
        raise EngineSetupError(
            f"Ray could not connect to {where} ({last_line(error)}). Check workers.ray_address."
        ) from error
    # Ray takes SIGTERM for itself ("this method overwrites the sigterm handler of the driver process").
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)
    return True


def _answers(address: str) -> bool:
    """Whether somebody listens at ``host:port``: Ray itself tries for a quarter of an hour before it gives up."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # `auto`, which Ray looks up
        return True
    # Ray reads a local host as this node's address, and its server may listen there alone.
    hosts = [host, ray.util.get_node_ip_address()] if host in ("127.0.0.1", "localhost") else [host.strip("[]")]
    for one in hosts:
        with suppress(OSError), socket.create_connection((one, int(port)), timeout=_ANSWER_SECONDS):
            return True
    return False


def nodes() -> list[Node]:
    """The living machines of the cluster that this process is connected to."""
    return [
        Node(
            cpus=float(one["Resources"].get("CPU", 0)),
            gpus=float(one["Resources"].get("GPU", 0)),
            memory_bytes=int(one["Resources"].get("memory", 0)),  # what Ray leaves to its processes
        )
        for one in ray.nodes()
        if one["Alive"]
    ]


def survey(address: str) -> list[Node]:
    """Looks at an existing cluster, and leaves it again.

    Raises:
        EngineSetupError: it cannot be reached.
    """
    ours = connect(address, 0)
    try:
        return nodes()
    finally:
        if ours:
            ray.shutdown()


def least_cpus(count: int | None, cpus: float | None) -> int:
    """CPUs that a local cluster must have for what was asked."""
    return math.ceil((count or 1) * (cpus or 1))


def worker_environment(cpus: float, ranks: int) -> dict[str, str]:
    """Environment variables of a worker's process.

    Args:
        cpus: CPUs that it has.
        ranks: processes that its engine shares them among.
    """
    threads = str(max(1, int(cpus // ranks)))
    # An existing cluster's processes do not inherit from this one.
    passed_on = ("HF_HUB_OFFLINE", "HF_HOME", "VLLM_")
    inherited = {name: value for name, value in os.environ.items() if name.startswith(passed_on)}
    return inherited | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        # Threads that wait should sleep: on shared cores the default, spinning, was measured 600 times slower.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
