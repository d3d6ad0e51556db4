from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.errors import CandidateFailed, ModelError
from workers.export import export_model
from workers.merge import Merger
from workers.skeleton import build_skeleton


@pytest.mark.parametrize("shard_bytes", [10**9, 100_000])
def test_the_exported_folder_is_the_merge(family: Any, tmp_path: Path, shard_bytes: int) -> None:
    recipe = family.recipe("dare_ties")
    skeleton = build_skeleton(recipe, family.parents, tmp_path / "skeleton", chat_template="{{ 'hi' }}")
    merger = Merger(family.folders, tokenizer=skeleton)
    export_model(recipe, merger, skeleton, tmp_path / "out", shard_bytes=shard_bytes)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard_bytes < 10**9)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    state = model.state_dict()
    for name, tensor in merger.tensors(recipe):
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ 'hi' }}"


def test_nothing_is_left_of_an_export_that_fails(llama: Any, tmp_path: Path) -> None:
    recipe = llama.recipe("linear", weight=float("nan"))
    skeleton = build_skeleton(recipe, llama.parents, tmp_path / "skeleton", chat_template=None)
    with pytest.raises(CandidateFailed):
        export_model(recipe, Merger(llama.folders), skeleton, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["skeleton"]


def test_an_existing_folder_is_not_overwritten(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="exists already"):
        export_model(llama.recipe("linear"), Merger(llama.folders), Path(llama.one), tmp_path)
