from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from workers.engine import EngineSpec
from workers.machine import Node
from workers.memory import Footprint, footprint, memory_finding

GIB = 2**30
ON_CPU = Footprint(on_gpu=False, weights=4 * GIB, cache=GIB, merge=2 * GIB, process=GIB, parents=6 * GIB)
ON_GPU = replace(ON_CPU, on_gpu=True, cache=0)
SPEC = EngineSpec("transformers", Path("skeleton"), {})
VLLM = replace(SPEC, engine="vllm")

SIZES = st.integers(0, 2**40)
FOOTPRINTS = st.builds(Footprint, st.booleans(), SIZES, SIZES, SIZES, st.integers(1, 2**40), SIZES)


def values_of(folder: str) -> list[int]:
    return [t.numel() for path in Path(folder).glob("*.safetensors") for t in load_file(path).values()]


# --- the footprint ----------------------------------------------------------------------------------------------


def test_weights_are_4_bytes_a_value_on_a_cpu_and_as_stored_on_a_gpu(family: Any, spec: EngineSpec) -> None:
    spec = replace(spec, folders=family.folders)
    total = sum(values_of(family.base))
    assert footprint(spec, on_gpu=False).weights == total * 4
    assert footprint(spec, on_gpu=True).weights == total * 2


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_type_that_is_named_holds_everywhere(
    llama: Any, spec: EngineSpec, dtype: Any, size: int, on_gpu: bool
) -> None:
    assert footprint(replace(spec, dtype=dtype), on_gpu=on_gpu).weights == sum(values_of(llama.base)) * size


def test_a_merge_holds_its_largest_tensor_of_all_parents_in_float32(llama: Any, spec: EngineSpec) -> None:
    # Three parents, the result, and one on the way.
    assert footprint(spec, on_gpu=False).merge == 5 * max(values_of(llama.base)) * 4


def test_parents_count_once_though_they_have_two_names(llama: Any, spec: EngineSpec) -> None:
    folders = {**spec.folders, "again": Path(llama.base)}
    sizes = [path.stat().st_size for folder in llama.folders.values() for path in folder.glob("*.safetensors")]
    assert footprint(replace(spec, folders=folders), on_gpu=False).parents == sum(sizes)


def test_only_vllm_on_a_cpu_has_its_cache_in_main_memory(spec: EngineSpec) -> None:
    vllm = replace(spec, engine="vllm", kv_cache_gib=3)
    assert footprint(vllm, on_gpu=False).cache == 3 * GIB
    assert footprint(vllm, on_gpu=True).cache == 0
    assert footprint(spec, on_gpu=False).cache == 0


def test_buffers_that_loaders_ignore_weigh_nothing(make_model: Callable[..., Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder = make_model(tmp_path / "old")
    before = footprint(replace(SPEC, folders={"old": folder}), on_gpu=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(10**6)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    after = footprint(replace(SPEC, folders={"old": folder}), on_gpu=False)
    assert (after.weights, after.merge) == (before.weights, before.merge)
    assert after.parents > before.parents + 10**6


@given(FOOTPRINTS)
def test_on_a_gpu_main_memory_holds_neither_weights_nor_cache(one: Footprint) -> None:
    assert one.own == one.merge + one.process + (0 if one.on_gpu else one.weights + one.cache)


# --- what was measured ------------------------------------------------------------------------------------------


@given(FOOTPRINTS, SIZES)
def test_a_peak_raises_the_process_and_nothing_else(one: Footprint, peak: int) -> None:
    corrected = one.measured(peak)
    assert replace(corrected, process=one.process) == one
    assert corrected.process >= one.process
    # Mapped parents may be part of the peak; whatever is above the reckoning is the process's.
    assert corrected.own + corrected.parents >= peak
    if peak <= one.own + one.parents:
        assert corrected == one
    else:
        assert corrected.own + corrected.parents == peak


# --- the finding ------------------------------------------------------------------------------------------------


def on(memory_bytes: int, *, workers: int = 2, one: Footprint = ON_CPU) -> Any:
    found = memory_finding(one, Node(4, memory_bytes=memory_bytes), workers=workers, spec=SPEC)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.check == "memory"
    return found


def test_workers_that_fill_the_machine_to_the_byte_fit_and_one_byte_less_is_an_error() -> None:
    together = 2 * ON_CPU.own
    assert on(together).level == "warning"
    missing = on(together - 1)
    assert (missing.level, missing.where) == ("error", "workers.count")
    assert "Lower workers.count to 1" in missing.remedy
    assert "workers.dtype: bfloat16" in missing.remedy


def test_parents_that_stay_in_memory_are_fine_and_one_byte_less_is_a_warning() -> None:
    enough = 2 * ON_CPU.own + ON_CPU.parents
    assert on(enough).level == "ok"
    slow = on(enough - 1)
    assert slow.level == "warning"
    assert "reads from the disk" in slow.message


def test_not_even_one_worker_takes_another_machine() -> None:
    found = on(ON_CPU.own - 1, workers=1)
    assert found.level == "error"
    assert "more memory" in found.remedy
    assert "workers.count to" not in found.remedy


def test_memory_that_nobody_knows_is_a_note() -> None:
    found = on(0)
    assert found.level == "note"
    assert "8.0 GiB each" in found.message
    assert "weights 4.0, attention cache 1.0, a merge 2.0, libraries 1.0" in found.message
    assert "together 16.0" in found.message


@given(FOOTPRINTS, st.integers(1, 64), SIZES)
def test_the_level_follows_from_what_is_needed_and_what_there_is(one: Footprint, workers: int, memory: int) -> None:
    found = memory_finding(one, Node(1, memory_bytes=memory), workers=workers, spec=SPEC)
    together = workers * one.own
    if not memory:
        assert found.level == "note"
    elif together > memory:
        assert found.level == "error"
        fitting = memory // one.own
        assert (f"workers.count to {fitting}" in found.remedy) == (fitting > 0)
        assert fitting < workers
    else:
        assert found.level == ("warning" if together + one.parents > memory else "ok")


def test_weights_need_room_on_each_gpu() -> None:
    room = Node(4, 2, memory_bytes=64 * GIB, gpu_bytes=4 * GIB)
    # As large as the GPU: nothing is left for a tensor of the merge.
    full = memory_finding(ON_GPU, room, workers=1, spec=SPEC)
    assert (full.level, full.where) == ("error", "workers.tensor_parallel_size")
    assert "4.0 GiB on each of 1 GPU(s)" in full.message
    assert "workers.tensor_parallel_size" in full.remedy
    assert memory_finding(ON_GPU, replace(room, gpu_bytes=4 * GIB + 1), workers=1, spec=SPEC).level == "ok"
    halved = replace(SPEC, tensor_parallel_size=2)
    assert memory_finding(ON_GPU, room, workers=1, spec=halved).level == "ok"


@given(st.floats(0.1, 0.99), st.integers(1, 8), st.integers(1, 2**36))
def test_vllm_may_take_its_share_of_a_gpu_and_no_more(share: float, ranks: int, gpu_bytes: int) -> None:
    spec = replace(VLLM, gpu_memory_utilization=share, tensor_parallel_size=ranks)
    node = Node(4, ranks, memory_bytes=2**50, gpu_bytes=gpu_bytes)
    for weights in (math.floor(gpu_bytes * share * ranks) + ranks, math.ceil(gpu_bytes * share * ranks) - ranks):
        found = memory_finding(replace(ON_GPU, weights=max(0, weights)), node, workers=1, spec=spec)
        assert found.level == ("error" if max(0, weights) / ranks >= gpu_bytes * share else "ok")


def test_a_gpu_of_unknown_size_is_not_judged() -> None:
    node = Node(4, 1, memory_bytes=64 * GIB)
    assert memory_finding(ON_GPU, node, workers=1, spec=SPEC).level == "ok"


def test_main_memory_beside_gpus_is_judged_too() -> None:
    node = Node(4, 1, memory_bytes=ON_GPU.own - 1, gpu_bytes=80 * GIB)
    found = memory_finding(ON_GPU, node, workers=1, spec=SPEC)
    assert (found.level, found.where) == ("error", "workers.count")
    assert "workers.dtype" not in found.remedy  # the weights are not there
