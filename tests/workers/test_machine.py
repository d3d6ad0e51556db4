from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import EngineSetupError
from workers.machine import Node, Resources, places, share_out, this_machine, usable_cores

CORES = st.integers(1, 64).map(float)
GPUS = st.integers(0, 8).map(float)
MACHINES = st.lists(st.builds(Node, CORES, GPUS), min_size=1, max_size=5)
COUNTS = st.none() | st.integers(1, 12)
# In tenths, most of which no binary fraction hits.
SHARES = st.none() | st.integers(1, 80).map(lambda tenths: tenths / 10)


def refusal(nodes: list[Node], **asked: float | None) -> str:
    settings = {"ranks": 1, "count": None, "cpus": None, "gpus": None} | asked
    with pytest.raises(EngineSetupError) as caught:
        share_out(nodes, **settings)  # type: ignore[arg-type]
    return str(caught.value)


# --- share_out --------------------------------------------------------------------------------------------------


@given(MACHINES, st.integers(1, 4), COUNTS, SHARES, SHARES)
def test_what_is_handed_out_is_there_and_every_worker_fits_on_one_machine(
    nodes: list[Node], ranks: int, count: int | None, cpus: float | None, gpus: float | None
) -> None:
    try:
        each = share_out(nodes, ranks=ranks, count=count, cpus=cpus, gpus=gpus)
    except EngineSetupError:
        return
    assert each.count * tenths(each.cpus) <= tenths(sum(one.cpus for one in nodes))
    assert each.count * tenths(each.gpus) <= tenths(sum(one.gpus for one in nodes))
    assert placed(nodes, each) == each.count
    assert (each.count, each.cpus, each.gpus) == (count or each.count, cpus or each.cpus, gpus or each.gpus)


def tenths(amount: float) -> int:
    return round(10 * amount)


def placed(nodes: list[Node], each: Resources) -> int:
    """How many of the workers find room when they are put down one by one."""
    free = [[tenths(one.cpus), tenths(one.gpus)] for one in nodes]
    cpus, gpus = tenths(each.cpus), tenths(each.gpus)
    count = 0
    for _ in range(each.count):
        home = next((one for one in free if one[0] >= cpus and one[1] >= gpus), None)
        if home is not None:
            home[0], home[1] = home[0] - cpus, home[1] - gpus
            count += 1
    return count


@given(MACHINES, st.integers(1, 4), st.integers(1, 12), SHARES)
def test_the_default_cpus_leave_room_for_all_wherever_one_cpu_each_does(
    nodes: list[Node], ranks: int, count: int, gpus: float | None
) -> None:
    need = gpus if gpus is not None else float(ranks if sum(one.gpus for one in nodes) else 0)
    if places(nodes, cpus=1, gpus=need) < count:
        refusal(nodes, ranks=ranks, count=count, gpus=gpus)
        return
    each = share_out(nodes, ranks=ranks, count=count, cpus=None, gpus=gpus)
    assert places(nodes, cpus=each.cpus, gpus=each.gpus) >= count
    assert places(nodes, cpus=each.cpus + 1, gpus=each.gpus) < count  # and no more would


@given(st.integers(1, 64), st.integers(1, 64))
def test_workers_of_one_machine_divide_its_cores(cores: int, count: int) -> None:
    if count > cores:
        assert "workers.cpus_per_worker" in refusal([Node(cores)], count=count)
    else:
        each = share_out([Node(cores)], ranks=1, count=count, cpus=None, gpus=None)
        assert each == Resources(count, cores // count, 0)


@given(st.integers(1, 16), st.integers(1, 8))
def test_without_a_count_there_are_as_many_workers_as_the_gpus_suffice_for(gpus: int, ranks: int) -> None:
    nodes = [Node(64, gpus)]
    if ranks > gpus:
        assert "workers.tensor_parallel_size" in refusal(nodes, ranks=ranks)
    else:
        each = share_out(nodes, ranks=ranks, count=None, cpus=None, gpus=None)
        assert (each.count, each.gpus) == (gpus // ranks, ranks)


def test_without_gpus_there_is_one_worker_with_all_cores() -> None:
    assert share_out([Node(8)], ranks=1, count=None, cpus=None, gpus=None) == Resources(1, 8, 0)


def test_gpus_may_be_shared() -> None:
    assert share_out([Node(8, 1)], ranks=1, count=None, cpus=None, gpus=0.25) == Resources(4, 2, 0.25)


@given(st.integers(2, 100))
def test_a_gpu_or_a_core_has_room_for_as_many_equal_parts_as_it_is_cut_into(parts: int) -> None:
    part = round(1 / parts, 4) if 10_000 % parts else 1 / parts
    count = parts if part * parts < 1.00001 else parts - 1  # 6 times 0.1667 are more than 1
    node = Node(1, 1)
    assert places([node], cpus=part, gpus=0) == count
    assert share_out([node], ranks=1, count=None, cpus=part, gpus=part) == Resources(count, part, part)
    assert share_out([node], ranks=1, count=count, cpus=part, gpus=part) == Resources(count, part, part)


def test_sums_that_binary_fractions_overshoot_still_fit() -> None:
    assert 100 * 1.1 > 110
    assert share_out([Node(110)], ranks=1, count=100, cpus=1.1, gpus=None).count == 100


def test_the_default_cpus_shrink_where_a_machine_would_not_hold_its_workers() -> None:
    # 12 cores for 3 workers would be 4 each, of which the smaller machines hold one and none.
    nodes = [Node(6), Node(4), Node(2)]
    assert share_out(nodes, ranks=1, count=3, cpus=None, gpus=None).cpus == 3


def test_too_few_gpus_names_the_numbers_and_every_setting() -> None:
    message = refusal([Node(8, 2), Node(8, 1)], count=2, gpus=2)
    assert "2 workers with 2 GPUs each need 4" in message
    assert "sees 3" in message
    for remedy in ("workers.count", "workers.gpus_per_worker", "workers.tensor_parallel_size", "CUDA_VISIBLE_DEVICES"):
        assert remedy in message


def test_too_few_cpus_names_the_numbers_and_the_setting() -> None:
    message = refusal([Node(4)], count=2, cpus=3)
    assert "2 workers with 3 CPUs each need 6" in message
    assert "sees 4" in message
    assert "workers.cpus_per_worker" in message


def test_enough_in_all_and_too_little_on_each_machine_is_told_apart() -> None:
    message = refusal([Node(8, 1), Node(8, 1)], ranks=2, count=1)
    assert "2 GPUs each do not fit on 2 machines" in message
    assert "have room for 0" in message
    assert "a worker stays on one of them" in message
    assert "workers.tensor_parallel_size" in message
    assert "have room for 2" in refusal([Node(3), Node(3)], count=3, cpus=2)


# --- places -----------------------------------------------------------------------------------------------------


@given(MACHINES, st.integers(1, 32), st.integers(0, 4))
def test_places_add_up_over_machines_and_never_exceed_cpus_or_gpus(nodes: list[Node], cpus: int, gpus: int) -> None:
    found = places(nodes, cpus=cpus, gpus=gpus)
    assert found == sum(places([one], cpus=cpus, gpus=gpus) for one in nodes)
    for one in nodes:
        here = places([one], cpus=cpus, gpus=gpus)
        assert here * cpus <= one.cpus
        assert here * gpus <= one.gpus
        # One more would not fit.
        assert (here + 1) * cpus > one.cpus or (here + 1) * gpus > one.gpus


def test_a_worker_without_gpus_needs_none() -> None:
    assert places([Node(4), Node(3, 1)], cpus=2, gpus=0) == 3
    assert places([Node(4), Node(3, 1)], cpus=2, gpus=1) == 1


# --- this machine -----------------------------------------------------------------------------------------------


def test_this_machine_has_what_the_process_may_use() -> None:
    node = this_machine()
    assert node.cpus == usable_cores() == len(os.sched_getaffinity(0))
    assert node.gpus == torch.cuda.device_count()
    assert bool(node.gpu_bytes) == bool(node.gpus)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < node.memory_bytes <= physical
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        assert node.memory_bytes <= int(limit.read_text())


def test_fewer_cores_for_the_process_are_fewer_cores_of_the_machine() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert this_machine().cpus == 1
    finally:
        os.sched_setaffinity(0, before)
