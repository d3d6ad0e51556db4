from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from workers.ends import end_token_ids
from workers.errors import ModelError
from workers.merge import Merger
from workers.models import Parent
from workers.recipe import Recipe, parent_recipe
from workers.skeleton import build_skeleton, own_template, tokenise

MakeModel = Callable[..., Path]
BOS_TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"


@pytest.fixture
def mixed(llama: Any, make_model: MakeModel, tmp_path: Path) -> dict[str, Parent]:
    """Two models, the second with two more tokens."""
    folders = {"plain": Path(llama.one), "wordy": make_model(tmp_path / "wordy", tokens=["<extra>", "<more>"])}
    return {name: Parent(name, folder, lora=False) for name, folder in folders.items()}


def union_recipe(**changes: Any) -> Recipe:
    models = [{"model": n, "parameters": {"weight": w}} for n, w in (("plain", 0.3), ("wordy", 0.7))]
    config = {"merge_method": "linear", "models": models, "base_model": "plain", "tokenizer_source": "union"}
    return Recipe(config | {"dtype": "float32", "out_dtype": "bfloat16"} | changes)


def test_the_skeleton_is_mergekits_folder_without_weights(
    family: Any, tmp_path: Path, mergekit_merge: Callable[[Recipe, Path], Path]
) -> None:
    recipe = family.recipe("ties")
    skeleton = build_skeleton(recipe, family.parents, tmp_path / "skeleton", chat_template=None)
    expected = mergekit_merge(recipe, tmp_path / "mergekit")
    assert not list(skeleton.glob("*.safetensors"))
    written = {path.name for path in expected.iterdir() if not path.name.startswith("model")}
    assert {path.name for path in skeleton.iterdir()} == written
    for file in written:
        assert (skeleton / file).read_bytes() == (expected / file).read_bytes()


def test_a_union_vocabulary_is_mergekits(
    mixed: dict[str, Parent], tmp_path: Path, mergekit_merge: Callable[[Recipe, Path], Path]
) -> None:
    recipe = union_recipe()
    skeleton = build_skeleton(recipe, mixed, tmp_path / "skeleton", chat_template=None)
    assert AutoConfig.from_pretrained(skeleton).vocab_size == 402
    by_folder = json.loads(json.dumps(dict(recipe.config)))
    for entry in by_folder["models"]:
        entry["model"] = str(mixed[entry["model"]].folder)
    by_folder["base_model"] = str(mixed["plain"].folder)
    expected = load_file(mergekit_merge(Recipe(by_folder), tmp_path / "mergekit") / "model.safetensors")
    folders = {name: parent.folder for name, parent in mixed.items()}
    for tokenizer in (None, skeleton):
        merged = dict(Merger(folders, tokenizer=tokenizer).tensors(recipe))
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], expected[name]) for name in merged)
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / f) for f in ("skeleton", "mergekit"))
    assert ours.get_vocab() == theirs.get_vocab()


def test_a_parent_alone_fits_the_vocabulary_of_the_run(mixed: dict[str, Parent], tmp_path: Path) -> None:
    skeleton = build_skeleton(union_recipe(), mixed, tmp_path / "skeleton", chat_template=None)
    merger = Merger({name: parent.folder for name, parent in mixed.items()}, tokenizer=skeleton)
    recipe = parent_recipe("plain", out_dtype="bfloat16", tokenizer_source="union")
    embedding = dict(merger.tensors(recipe))["model.embed_tokens.weight"]
    assert embedding.shape == (402, 64)


def test_padding_of_the_vocabulary_reaches_the_config(mixed: dict[str, Parent], tmp_path: Path) -> None:
    recipe = union_recipe(tokenizer_source=None, tokenizer={"source": "union", "pad_to_multiple_of": 64})
    skeleton = build_skeleton(recipe, mixed, tmp_path / "skeleton", chat_template=None)
    assert AutoConfig.from_pretrained(skeleton).vocab_size == 448
    merger = Merger({name: parent.folder for name, parent in mixed.items()}, tokenizer=skeleton)
    assert dict(merger.tensors(recipe))["lm_head.weight"].shape == (448, 64)


def test_prompts_are_what_the_chat_template_writes(llama: Any, tmp_path: Path, conversations: Any) -> None:
    skeleton = build_skeleton(llama.recipe("linear"), llama.parents, tmp_path / "skeleton", chat_template=None)
    tokenizer = AutoTokenizer.from_pretrained(llama.one)
    for ids, conversation in zip(tokenise(skeleton, conversations), conversations, strict=True):
        expected = f"<|user|>{conversation[0]['content']}<|end|><|assistant|>"
        assert tokenizer.decode(ids) == expected


def test_a_given_template_replaces_the_models_own(llama: Any, tmp_path: Path, conversations: Any) -> None:
    recipe = llama.recipe("linear")
    skeleton = build_skeleton(recipe, llama.parents, tmp_path / "skeleton", chat_template=BOS_TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(skeleton)
    ids = tokenise(skeleton, conversations)[0]
    assert tokenizer.decode(ids) == "<s>[user] hello"
    assert ids == tokenise(skeleton, conversations, chat_template=BOS_TEMPLATE)[0]


def test_begin_of_text_is_never_doubled(llama: Any, tmp_path: Path, conversations: Any) -> None:
    doubled = "{{ bos_token }}" + BOS_TEMPLATE
    skeleton = build_skeleton(llama.recipe("linear"), llama.parents, tmp_path / "s", chat_template=doubled)
    assert [ids.count(2) for ids in tokenise(skeleton, conversations)] == [1] * len(conversations)


def test_without_any_template_the_remedy_is_named(llama: Any, tmp_path: Path, conversations: Any) -> None:
    skeleton = build_skeleton(llama.recipe("linear"), llama.parents, tmp_path / "skeleton", chat_template=None)
    (skeleton / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"chat.template to llama-2, vicuna, or the path"):
        tokenise(skeleton, conversations)


def test_a_conversation_that_the_template_refuses_is_named(llama: Any, tmp_path: Path) -> None:
    strict = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' else 'ok' }}"
    skeleton = build_skeleton(llama.recipe("linear"), llama.parents, tmp_path / "skeleton", chat_template=strict)
    conversations = [[{"role": "user", "content": "a"}], [{"role": "system", "content": "b"}]]
    with pytest.raises(ModelError, match=r"conversation 1 \(roles system\): no system role"):
        tokenise(skeleton, conversations)


def test_what_ends_a_parents_answer_ends_a_merges_too(llama: Any, make_model: MakeModel, tmp_path: Path) -> None:
    # As Llama-3 and Qwen do: the chat model closes a turn with a token that its base does not call an end.
    chat = make_model(tmp_path / "chat")
    (chat / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    parents = {name: Parent(name, folder, lora=False) for name, folder in (("base", Path(llama.base)), ("chat", chat))}
    recipe = Recipe(
        {
            "merge_method": "task_arithmetic",
            "models": [{"model": "chat", "parameters": {"weight": 1.0}}],
            "base_model": "base",
            "dtype": "float32",
            "out_dtype": "bfloat16",
        }
    )
    skeleton = build_skeleton(recipe, parents, tmp_path / "skeleton", chat_template=None)
    assert end_token_ids(Path(llama.base)) == {1}
    assert end_token_ids(skeleton) == {1, 5}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1"),
        ("tokenizer_config.json", "{"),
        ("generation_config.json", "{"),
        ("generation_config.json", "[]"),
    ],
)
@pytest.mark.parametrize("name", ["base", "one"])
def test_a_broken_file_of_a_parent_is_one_message(
    llama: Any, tmp_path: Path, name: str, file: str, text: str | None
) -> None:
    folder = Path(shutil.copytree(getattr(llama, name), tmp_path / "broken"))
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    parents = {**llama.parents, getattr(llama, name): Parent(name, folder, lora=False)}
    with pytest.raises(ModelError, match="broken"):
        build_skeleton(llama.recipe("task_arithmetic"), parents, tmp_path / "skeleton", chat_template=None)


def test_code_of_a_folder_is_neither_run_nor_asked_about(llama: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama.one, tmp_path / "coded"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        own_template([Parent("coded", folder, lora=False)])
