"""Workers that are lost for good, a node that vanishes, a driver that is killed; and workers that are never idle."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from workers.errors import WorkersLost
from workers.job import Job, Transcript
from workers.pool import Pool

Jobs = Callable[[str, float], Job]
DRIVER = """
import sys
from dataclasses import replace
from pathlib import Path
from fitness.generation import PRESETS
from workers.engine import EngineSpec
from workers.job import Job
from workers.pool import Pool
from workers.recipe import parent_recipe

if __name__ == "__main__":
    skeleton, model = sys.argv[1:]
    spec = EngineSpec("transformers", Path(skeleton), {model: Path(model)}, max_model_len=200)
    prompts = {"search": [(str(i), [3, 4, 5]) for i in range(64)], "validation": []}
    jobs = (Job(str(i), parent_recipe(model, out_dtype="bfloat16"), "search") for i in range(10_000))
    with Pool(spec, prompts, replace(PRESETS["greedy-short"], max_new_tokens=64), count=2, cpus_per_worker=1) as pool:
        for result in pool.run(jobs):
            print(result.job.key, flush=True)
"""


@pytest.mark.slow
def test_a_run_that_has_no_worker_left_says_why_and_the_next_one_tries_again(
    sleeping_pool: Callable[..., Pool], sleep_job: Jobs, tmp_path: Path
) -> None:
    skeleton, crash = tmp_path / "skeleton", tmp_path / "crash"
    with sleeping_pool(count=2, cpus_per_worker=1, max_attempts=9) as pool:
        skeleton.rmdir()
        crash.touch()
        with pytest.raises(WorkersLost, match=r"no worker is left.*has no folder .*skeleton"):
            list(pool.run([sleep_job(key, 0.1) for key in "abcd"]))
        skeleton.mkdir()
        crash.unlink()
        results = list(pool.run([sleep_job(key, 0.1) for key in "abcd"]))
        assert all(isinstance(result, Transcript) for result in results)


def test_the_last_candidates_are_shared_so_that_no_worker_idles(
    sleeping_pool: Callable[..., Pool], sleep_job: Jobs
) -> None:
    random_seconds = random.Random(0)
    with sleeping_pool(count=4, cpus_per_worker=0.25, split_prompts=1) as pool:
        list(pool.run([sleep_job(str(i), 0.1) for i in range(4)]))  # Ray's first calls are slow
        started = time.monotonic()
        results = []
        for generation in range(2):
            jobs = [sleep_job(f"{generation}-{i}", random_seconds.uniform(0.5, 1.5)) for i in range(8)]
            results += list(pool.run(jobs))
        wall = time.monotonic() - started
    assert len(results) == 16
    for result in results:
        assert isinstance(result, Transcript)
        assert [response.prompt_id for response in result.responses] == [f"p{i}" for i in range(16)]
        assert [response.text for response in result.responses] == [str(i) for i in range(16)]
    busy = [sum(s.seconds for r in results for s in r.shares if s.worker == worker) for worker in range(4)]
    assert min(busy) / wall >= 0.9


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_a_run_goes_on_without_the_node_that_vanished(
    two_nodes: Cluster, sleeping_pool: Callable[..., Pool], sleep_job: Jobs
) -> None:
    second = two_nodes.add_node(num_cpus=1)
    with sleeping_pool(count=2, cpus_per_worker=1, ray_address=two_nodes.address) as pool:
        running = pool.run(iter([sleep_job(str(i), 1.0) for i in range(10)]))
        results = [next(running), next(running)]
        assert {share.worker for result in results for share in result.shares} == {0, 1}
        started = time.monotonic()
        two_nodes.remove_node(second, allow_graceful=False)
        results += list(running)
        assert time.monotonic() - started < 30
        assert sorted(int(result.job.key) for result in results) == list(range(10))
        assert all(isinstance(result, Transcript) for result in results)
        (lost,) = [lost for result in results for lost in result.lost]
        assert lost.stage == "worker"
        survivors = {share.worker for result in results[4:] for share in result.shares}
        assert survivors == {1 - lost.worker}
        # The next run needs no second worker either; and the second one joins in where a node comes back.
        assert len(list(pool.run([sleep_job("more", 0.1)]))) == 1
        two_nodes.add_node(num_cpus=1)
        workers: set[int] = set()
        deadline = time.monotonic() + 60
        while workers != {0, 1} and time.monotonic() < deadline:
            again = pool.run([sleep_job(f"{i}", 0.2) for i in range(6)])
            workers = {share.worker for result in again for share in result.shares}
        assert workers == {0, 1}


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process(spec: Any, llama: Any, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(spec.skeleton), llama.one]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline().strip() in (b"0", b"1")  # whichever of the two workers was first
        family = psutil.Process(driver.pid).children(recursive=True)
        engines = [child for child in family if "ray::Worker" in " ".join(child.cmdline())]
        assert len(engines) == 2
        driver.kill()
    _, alive = psutil.wait_procs(engines, timeout=20)
    assert not alive
    # Two of Ray's helpers, without an engine, wait 60 s to report the end to a server that has ended too.
    _, alive = psutil.wait_procs(family, timeout=100)
    assert not alive
