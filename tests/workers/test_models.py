from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.checkpoint import Checkpoint
from workers.convert import convert_checkpoint
from workers.errors import ModelError
from workers.merge import Merger
from workers.models import Parent, check_compatible, read_architecture, resolve_parents
from workers.recipe import parent_recipe

MakeModel = Callable[..., Path]


@pytest.fixture
def resolve(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def call(*names: str, root: Path | None = None) -> dict[str, Any]:
        return resolve_parents(names, cache_dir=tmp_path / "cache", root=root or tmp_path)

    return call


@pytest.fixture(scope="session")
def adapter(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "style"
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(llama.base)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(model, settings).save_pretrained(folder)
    return folder


def test_local_folders_resolve_relative_to_the_root(llama: Any, resolve: Any) -> None:
    parents = resolve("one", "./two", "one", root=llama.root)
    assert list(parents) == ["one", "./two"]
    assert parents["one"].folder == Path(llama.one)
    assert parents["./two"].folder == Path(llama.two)


def test_a_missing_folder_suggests_its_neighbour(llama: Any, resolve: Any) -> None:
    with pytest.raises(ModelError, match=r"model './tow': there is no folder .*Did you mean .*/two\?"):
        resolve("./tow", root=llama.root)


def test_a_hub_id_that_is_not_there_is_one_message(resolve: Any) -> None:
    with pytest.raises(ModelError, match=r"model 'no-such-org/no-such-model': there is no folder"):
        resolve("no-such-org/no-such-model")


def test_a_folder_without_config_is_no_model(tmp_path: Path, resolve: Any) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"model './empty'.*no config.json"):
        resolve("./empty")


def test_a_folder_without_weights_says_what_it_expected(llama: Any, tmp_path: Path, resolve: Any) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(Path(llama.one) / "config.json", tmp_path / "bare")
    with pytest.raises(ModelError, match=r"model 'bare'.*no weights.*model.safetensors"):
        resolve("bare")


def test_quantised_weights_are_refused(llama: Any, tmp_path: Path, resolve: Any) -> None:
    folder = shutil.copytree(llama.one, tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match=r"'quantised' is quantised \(gptq\).*unquantised"):
        resolve("quantised")


def test_a_missing_shard_is_named(llama: Any, tmp_path: Path, resolve: Any) -> None:
    folder = shutil.copytree(llama.one, tmp_path / "torn")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    parents = resolve("torn")
    with pytest.raises(ModelError, match=rf"model 'torn'.*{shard.name}.*incomplete"):
        check_compatible(parents)


def test_a_damaged_shard_is_named(qwen: Any, tmp_path: Path, resolve: Any) -> None:
    folder = shutil.copytree(qwen.one, tmp_path / "torn")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"model 'torn'.*model.safetensors is damaged"):
        check_compatible(resolve("torn"))


def test_pickles_are_refused_with_the_command_that_converts_them(qwen: Any, tmp_path: Path, resolve: Any) -> None:
    folder = shutil.copytree(qwen.one, tmp_path / "old")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # shared, as old checkpoints have it
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"model 'old'.*evolve convert \S+/old --out \S+/old-safetensors"):
        resolve("old")
    convert_checkpoint(folder, tmp_path / "old-safetensors")
    parents = resolve("old-safetensors")
    merged = dict(Merger({"p": parents["old-safetensors"].folder}).tensors(parent_recipe("p", out_dtype="bfloat16")))
    original = load_file(Path(qwen.one) / "model.safetensors")
    assert merged.keys() == original.keys()
    assert all(torch.equal(merged[name], original[name]) for name in original)
    assert AutoTokenizer.from_pretrained(tmp_path / "old-safetensors").chat_template


def test_sharded_pickles_convert_to_sharded_safetensors(llama: Any, tmp_path: Path, resolve: Any) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(Path(llama.one) / "config.json", folder)
    weight_map = {}
    for number, shard in enumerate(sorted(Path(llama.one).glob("*.safetensors"))):
        tensors = load_file(shard)
        torch.save(tensors, folder / f"pytorch_model-{number}.bin")
        weight_map |= dict.fromkeys(tensors, f"pytorch_model-{number}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert_checkpoint(folder, tmp_path / "new")
    parents = resolve("new", llama.one)
    check_compatible(parents)


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_a_pickle_with_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    torch.save({"weight": _Harmful()}, tmp_path / "evil" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="something else than tensors"):
        convert_checkpoint(tmp_path / "evil", tmp_path / "out")
    assert not (tmp_path / "harmed").exists()
    assert not (tmp_path / "out").exists()


@pytest.fixture
def pickled(llama: Any, tmp_path: Path) -> Path:
    """A model whose weights are one pickle."""
    folder = tmp_path / "old"
    shutil.copytree(llama.one, folder, ignore=shutil.ignore_patterns("model*.safetensors*"))
    tensors = {name: t for path in Path(llama.one).glob("*.safetensors") for name, t in load_file(path).items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def allow(tmp_path: Path, *names: str) -> Path:
    """The folder of ``old`` where these names may be pickles."""
    return resolve_parents(["old"], cache_dir=tmp_path / "cache", root=tmp_path, allow_pickles=names)["old"].folder


def test_pickles_that_are_allowed_are_converted_once_into_the_cache(llama: Any, pickled: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in pickled.iterdir())
    folder = allow(tmp_path, "old")
    assert folder.is_relative_to(tmp_path / "cache")
    assert not list(folder.glob("*.bin"))
    check_compatible([Parent("old", folder, lora=False), Parent("one", Path(llama.one), lora=False)])
    original = {name: t for path in Path(llama.one).glob("*.safetensors") for name, t in load_file(path).items()}
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, original[name])
    assert sorted(path.name for path in pickled.iterdir()) == before
    written = (folder / "model.safetensors").stat()
    assert allow(tmp_path, "old") == folder
    again = (folder / "model.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_pickles_that_are_not_named_are_refused_with_the_command(pickled: Path, tmp_path: Path) -> None:
    for names in ((), ("older",), (str(pickled),)):
        with pytest.raises(ModelError, match=r"model 'old' stores its weights as Python pickles.*evolve convert"):
            allow(tmp_path, *names)
    assert not (tmp_path / "cache" / "converted").exists()


def test_pickles_that_have_changed_are_converted_anew(pickled: Path, tmp_path: Path) -> None:
    first = allow(tmp_path, "old")
    tensors = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    torch.save(tensors, pickled / "pytorch_model.bin")
    second = allow(tmp_path, "old")
    assert second != first
    assert torch.equal(load_file(second / "model.safetensors")["model.norm.weight"], tensors["model.norm.weight"])


def test_a_tokenizer_that_was_mended_beside_pickles_is_taken(pickled: Path, tmp_path: Path) -> None:
    allow(tmp_path, "old")
    (pickled / "chat_template.jinja").write_text("mended")
    assert (allow(tmp_path, "old") / "chat_template.jinja").read_text() == "mended"


def test_a_pickle_with_code_is_refused_though_it_is_allowed(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Harmful()}, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="something else than tensors"):
        allow(tmp_path, "old")
    assert not (tmp_path / "harmed").exists()


def test_safetensors_are_taken_where_there_are_pickles_too(llama: Any, pickled: Path, tmp_path: Path) -> None:
    for path in Path(llama.one).glob("model*.safetensors*"):
        shutil.copy(path, pickled)
    assert allow(tmp_path, "old") == allow(tmp_path) == pickled


def test_parents_of_one_family_are_compatible(family: Any) -> None:
    check_compatible(family.parents)


def test_different_shapes_name_tensor_shapes_models_and_remedy(
    llama: Any, make_model: MakeModel, tmp_path: Path, resolve: Any
) -> None:
    make_model(tmp_path / "wide", intermediate_size=192)
    with pytest.raises(ModelError) as error:
        check_compatible(resolve(llama.one, "wide"))
    message = str(error.value)
    assert "mlp." in message
    for part in ("[128, 64]", "[192, 64]") if "down" not in message else ("[64, 128]", "[64, 192]"):
        assert part in message
    assert repr(llama.one) in message
    assert "'wide'" in message
    assert "same base model" in message


def test_different_depths_name_the_tensor_that_is_missing(
    llama: Any, make_model: MakeModel, tmp_path: Path, resolve: Any
) -> None:
    make_model(tmp_path / "deep", num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"tensor 'model.layers.3\.\S+' is in model 'deep' and not in"):
        check_compatible(resolve(llama.one, "deep"))


def test_different_architectures_are_refused(llama: Any, qwen: Any, resolve: Any) -> None:
    with pytest.raises(ModelError, match=r"differ in architectures.*LlamaForCausalLM.*Qwen2ForCausalLM"):
        check_compatible(resolve(llama.one, qwen.one))


def test_vocabularies_may_differ_with_a_tokenizer_source_only(
    llama: Any, make_model: MakeModel, tmp_path: Path, resolve: Any
) -> None:
    make_model(tmp_path / "wordy", vocab_size=416)
    parents = resolve(llama.one, "wordy")
    with pytest.raises(ModelError, match=r"\[400, 64\].*\[416, 64\].*genome.tokenizer_source"):
        check_compatible(parents)
    check_compatible(parents, tokenizer_source="union")


def test_a_tensor_that_mergekit_would_lose_is_named(qwen: Any, tmp_path: Path, resolve: Any) -> None:
    folder = shutil.copytree(qwen.one, tmp_path / "extra")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.adapter.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model 'extra'.*does not know.*model.layers.0.adapter.weight"):
        check_compatible(resolve("extra"))


def test_architecture_lists_stored_tensors_by_layer(llama: Any, qwen: Any) -> None:
    for family, post in ((llama, ("model.norm.weight", "lm_head.weight")), (qwen, ("model.norm.weight",))):
        architecture = read_architecture(Path(family.one))
        assert architecture.num_layers == 3
        assert architecture.pre == ("model.embed_tokens.weight",)
        assert architecture.post == post
        assert architecture.dtype == "bfloat16"
        names = {*architecture.pre, *architecture.post}.union(*architecture.layers)
        assert names == Checkpoint("one", Path(family.one)).tensors.keys()
        assert all(f".layers.{i}." in name for i, layer in enumerate(architecture.layers) for name in layer)


def test_a_lora_is_merged_once_into_the_cache(llama: Any, adapter: Path, resolve: Any, tmp_path: Path) -> None:
    name = f"{llama.base}+{adapter}"
    (parent,) = resolve(name).values()
    assert parent.lora
    assert parent.folder.is_relative_to(tmp_path / "cache")
    written = (parent.folder / "model.safetensors").stat().st_mtime_ns
    assert resolve(name)[name].folder == parent.folder
    assert (parent.folder / "model.safetensors").stat().st_mtime_ns == written
    assert AutoTokenizer.from_pretrained(parent.folder).chat_template
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama.base), str(adapter))
    expected = model.merge_and_unload().state_dict()
    merged = AutoModelForCausalLM.from_pretrained(parent.folder).state_dict()
    changed = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(merged[changed], expected[changed])
    assert not torch.equal(merged[changed], AutoModelForCausalLM.from_pretrained(llama.base).state_dict()[changed])
    check_compatible(resolve(name, llama.one))


def test_an_adapter_of_another_model_is_refused(
    adapter: Path, make_model: MakeModel, tmp_path: Path, resolve: Any
) -> None:
    make_model(tmp_path / "wide", intermediate_size=192)
    with pytest.raises(ModelError, match=r"wide\+.*does not fit its base model"):
        resolve(f"wide+{adapter}")
    assert not list((tmp_path / "cache" / "lora").glob("wide*style*[!k]"))


def test_a_folder_that_is_no_adapter_is_refused(llama: Any, resolve: Any) -> None:
    with pytest.raises(ModelError, match=r"no adapter_config.json"):
        resolve(f"{llama.base}+{llama.one}")


def test_a_damaged_adapter_is_one_message(llama: Any, adapter: Path, resolve: Any, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(adapter, tmp_path / "cut"))
    path = cut / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelError, match="cannot be read"):
        resolve(f"{llama.base}+{cut}")


@pytest.mark.parametrize("text", ["[1]", "null"])
def test_a_config_that_is_no_object_is_one_message(llama: Any, resolve: Any, tmp_path: Path, text: str) -> None:
    folder = Path(shutil.copytree(llama.one, tmp_path / "odd"))
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="no JSON object"):
        resolve(str(folder))


@pytest.mark.parametrize("text", ["[]", '{"weight_map": []}', '{"weight_map": {"a": {}}}'])
def test_an_index_that_is_none_is_one_message(llama: Any, tmp_path: Path, text: str) -> None:
    folder = Path(shutil.copytree(llama.one, tmp_path / "odd"))
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"damaged|lack"):
        check_compatible([Parent("odd", folder, lora=False)])


def test_a_tensor_that_no_model_has_is_missed(family: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family.one, tmp_path / "holed"))
    tensors = {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    del tensors["model.layers.1.mlp.up_proj.weight"]
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 'model.layers.1.mlp.up_proj.weight' \(1 such\)"):
        check_compatible([Parent("holed", folder, lora=False)])
