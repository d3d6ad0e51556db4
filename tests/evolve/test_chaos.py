"""Runs that are killed with -9 and resumed; in full: benchmarks/chaos.py. And a run that moves to another processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from evolve.cli import main; main()"]
CORES = ("Haswell", "Sandybridge", "Prescott", "Nehalem")
SEARCH = """
import numpy as np
from evolve.driver import Driver
driver = Driver([0.4] * 6, sigma0=0.25, popsize=6, seed=0)
for _ in range(3):
    asked = driver.ask()
    driver.tell(asked, [-float(((x - 0.7) ** 2).sum()) for x in asked])
print(np.array(asked).tobytes().hex())
"""


@pytest.mark.slow
def test_killed_runs_end_like_one_left_alone(tmp_path: Path) -> None:
    options = ["--runs", "2", "--max-kills", "2", "--keep", str(tmp_path), "--json", str(tmp_path / "report.json")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), *options],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["kills"] >= 2
    assert (report["runs_that_differ"], report["lost_evaluations"], report["processes_left"]) == (0, 0, {})


@pytest.fixture(scope="module")
def two_kernels() -> tuple[str, str]:
    """Two of OpenBLAS's kernels whose results differ in the last digits, so that the search asks other points."""
    asked = {}
    for core in CORES:
        done = subprocess.run(
            [sys.executable, "-c", SEARCH], env=with_kernel(core), capture_output=True, text=True, check=False
        )
        if done.returncode == 0:  # a kernel for another processor ends with an illegal instruction
            asked[core] = done.stdout
    for one, other in combinations(asked, 2):
        if asked[one] != asked[other]:
            return one, other
    pytest.skip("no two OpenBLAS kernels that run on this processor compute differently")


def with_kernel(core: str) -> dict[str, str]:
    return {**os.environ, "OPENBLAS_CORETYPE": core}


@pytest.mark.slow
def test_a_run_resumed_on_another_processor_finishes_with_a_warning(
    two_kernels: tuple[str, str], config_data: dict[str, Any], tmp_path: Path
) -> None:
    one, other = two_kernels
    config = {**config_data, "genome": {**config_data["genome"], "layer_granularity": 1}}  # n = 6
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    first = subprocess.Popen(
        [*COMMAND, "run", "run.yaml", "--force", "--name", "moved"],
        cwd=tmp_path,
        env=with_kernel(one),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert first.stdout is not None
    for line in first.stdout:
        if "candidate 1.2" in line:  # generation 1 is the first that depends on linear algebra
            first.kill()
    assert first.wait(timeout=60) == -9
    before = {row["key"]: row["genotype"] for row in history(tmp_path)}
    assert "search-0001-002" in before

    second = evolve(tmp_path, "resume", "moved", env=with_kernel(other))
    assert second.returncode == 0, second.stderr + second.stdout
    warnings = json.loads(evolve(tmp_path, "show", "moved", "--json").stdout)["warnings"]
    (warning,) = [one for one in warnings if not one.startswith(("few-prompts", "answers-end"))]
    for text in (warning, " ".join(second.stdout.split())):
        assert f"blas {one} -> {other}" in text
    rows = history(tmp_path)
    assert {row["key"]: row["genotype"] for row in rows if row["key"] in before} == before
    assert len([row for row in rows if row["kind"] == "search"]) == 16


def history(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(evolve(folder, "history", "moved", "--json").stdout)
    return rows


def evolve(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
    )
