from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fitness.findings import Finding, worst
from workers.fit import parents_fit
from workers.model_facts import ModelFacts, read_facts

MakeModel = Callable[..., Path]
Broken = Callable[..., list[Finding]]


def edit(path: Path, *drop: str, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key in drop:
        data.pop(key)
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


def facts_of(*folders: Path) -> list[ModelFacts]:
    return [read_facts(folder.name, folder) for folder in folders]


def complaints(findings: list[Finding]) -> dict[str, str]:
    return {one.check: one.level for one in findings if one.level in ("warning", "error")}


def named(findings: list[Finding], check: str) -> Finding:
    (found,) = [one for one in findings if one.check == check]
    return found


@pytest.fixture
def child(llama: Any, tmp_path: Path) -> Path:
    """A child of the family that a test may break."""
    return Path(shutil.copytree(llama.one, tmp_path / "child"))


@pytest.fixture
def fit(llama: Any) -> Broken:
    """Findings of the family's base with a model."""

    def check(folder: Path, *, tokenizer_source: str | None = None, **options: Any) -> list[Finding]:
        (base,) = facts_of(Path(llama.base))
        return parents_fit(facts_of(folder), base, tokenizer_source=tokenizer_source, **options)

    return check


def rename_tokens(folder: Path, swap: dict[str, str]) -> None:
    """Renames tokens wherever tokenizer.json names them."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = data["model"]["vocab"]
    data["model"]["vocab"] = {swap.get(token, token): i for token, i in vocabulary.items()}
    data["model"]["merges"] = [m for m in data["model"]["merges"] if "".join(m) not in swap and not set(m) & set(swap)]
    for token in data["added_tokens"]:
        token["content"] = swap.get(token["content"], token["content"])
    path.write_text(json.dumps(data), encoding="utf-8")


def test_sound_families_give_nothing_above_ok(family: Any) -> None:
    base, one, two = facts_of(*family.folders.values())
    for findings in (
        parents_fit([one, two], base, tokenizer_source=None),
        parents_fit([one, two], None, tokenizer_source=None),
        parents_fit([base, one, two], base, tokenizer_source="base"),
    ):
        assert worst(findings) == "ok", findings
        assert {"same-architecture", "same-shapes", "same-vocabulary", "same-positions", "chat-template"} <= {
            one.check for one in findings
        }
    assert worst(parents_fit([one], None, tokenizer_source=None)) == "ok"


def test_findings_are_plain_data(child: Path, fit: Broken) -> None:
    edit(child / "config.json", num_hidden_layers=2, architectures=["MistralForCausalLM"])
    json.dumps([one.to_dict() for one in fit(child)])


def test_a_chat_child_over_a_plain_base_gives_notes_at_most(llama: Any, child: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    edit(base / "tokenizer_config.json", eos_token="<s>")
    edit(base / "config.json", eos_token_id=2)
    findings = parents_fit(facts_of(child), *facts_of(base), tokenizer_source=None)
    assert worst(findings) == "note"
    note = named(findings, "special-tokens")
    assert note.evidence == {"eos": [["<s>", 2], ["<|end|>", 1]]}
    assert note.where == "child"


@pytest.mark.parametrize(
    ("changes", "check", "level"),
    [
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, "same-architecture", "error"),
        ({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}, "same-architecture", "error"),
        ({"tie_word_embeddings": True}, "tied-embeddings", "error"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "same-positions", "warning"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
            "same-positions",
            "warning",
        ),
        ({"vocab_size": 416}, "folder-is-whole", "error"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnModel"}}, "remote-code", "error"),
        ({"quantization_config": {"quant_method": "gptq"}}, "same-dtype", "error"),
    ],
)
def test_one_setting_that_does_not_fit_gives_one_finding(
    child: Path, fit: Broken, changes: dict[str, Any], check: str, level: str
) -> None:
    edit(child / "config.json", **changes)
    findings = fit(child)
    assert complaints(findings) == {check: level}
    assert named(findings, check).where == "child"


def test_the_old_spelling_of_rope_is_the_same_setting(child: Path, fit: Broken) -> None:
    edit(child / "config.json", "rope_parameters", rope_theta=10000.0, rope_scaling=None)
    assert worst(fit(child)) == "ok"


def test_another_context_length_is_a_note(child: Path, fit: Broken) -> None:
    edit(child / "config.json", max_position_embeddings=128)
    assert named(fit(child), "same-details").evidence == {"max_position_embeddings": [256, 128]}
    assert worst(fit(child)) == "note"


def test_another_activation_is_a_warning(child: Path, fit: Broken) -> None:
    edit(child / "config.json", hidden_act="gelu")
    assert complaints(fit(child)) == {"same-details": "warning"}


def test_differing_shapes_are_counted_and_the_first_named(make_model: MakeModel, tmp_path: Path, fit: Broken) -> None:
    findings = fit(make_model(tmp_path / "wide", intermediate_size=96))
    assert complaints(findings) == {"same-shapes": "error"}
    found = named(findings, "same-shapes")
    assert found.evidence["count"] == 9
    assert found.evidence["model.layers.0.mlp.gate_proj.weight"] == [[128, 64], [96, 64]]


def test_other_layers_are_another_architecture(make_model: MakeModel, tmp_path: Path, fit: Broken) -> None:
    assert complaints(fit(make_model(tmp_path / "deep", num_hidden_layers=4))) == {"same-architecture": "error"}


def test_a_missing_layer_is_an_error(llama: Any, tmp_path: Path, make_model: MakeModel) -> None:
    holed = make_model(tmp_path / "holed")
    tensors = load_file(holed / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not name.startswith("model.layers.2.")}
    save_file(kept, holed / "model.safetensors", metadata={"format": "pt"})
    findings = parents_fit(facts_of(holed), *facts_of(Path(llama.base)), tokenizer_source=None)
    assert complaints(findings) == {"folder-is-whole": "error", "same-shapes": "error"}
    assert "no weights for 2" in named(findings, "folder-is-whole").message


def test_more_tokens_need_a_tokenizer_source(make_model: MakeModel, tmp_path: Path, fit: Broken) -> None:
    wordy = make_model(tmp_path / "wordy", tokens=["<extra>", "<more>"])
    findings = fit(wordy)
    assert complaints(findings) == {"same-shapes": "error"}
    assert "genome.tokenizer_source" in named(findings, "same-shapes").remedy
    assert named(findings, "added-tokens").evidence == {"wordy": ["<extra>", "<more>"]}
    assert worst(fit(wordy, tokenizer_source="union")) == "note"


def test_a_token_that_only_one_parent_was_trained_with_is_a_warning(make_model: MakeModel, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", vocab_size=416)
    chatty = make_model(tmp_path / "chatty", vocab_size=416, tokens=["<|turn|>"])
    padded = make_model(tmp_path / "padded", vocab_size=416, tokens=["<pad>"])
    edit(padded / "tokenizer_config.json", pad_token="<pad>")
    for folder, level in ((chatty, "warning"), (padded, "note")):
        findings = parents_fit(facts_of(folder), *facts_of(base), tokenizer_source=None)
        assert named(findings, "added-tokens").level == level
        assert worst(findings) == level


def test_two_tokens_that_changed_places_are_an_error(child: Path, fit: Broken) -> None:
    rename_tokens(child, {"a": "b", "b": "a"})
    findings = fit(child)
    assert complaints(findings) == {"same-vocabulary": "error"}
    found = named(findings, "same-vocabulary")
    assert found.evidence["moved"] == 2
    assert "genome.tokenizer_source" in found.remedy
    assert complaints(fit(child, tokenizer_source="base")) == {}


def test_a_renamed_reserved_token_is_a_warning_and_a_renamed_word_an_error(
    llama: Any, child: Path, fit: Broken, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(child, tmp_path / "other"))
    rename_tokens(child, {"<|system|>": "<|reserved|>"})
    assert complaints(fit(child))["same-vocabulary"] == "warning"
    rename_tokens(other, {"z": "zz"})
    assert complaints(fit(other)) == {"same-vocabulary": "error"}


def test_a_token_without_a_row_is_a_warning(make_model: MakeModel, tmp_path: Path, fit: Broken) -> None:
    homeless = make_model(tmp_path / "homeless", tokens=["<new>"], vocab_size=400)
    findings = fit(homeless)
    assert named(findings, "folder-is-whole").evidence == {"count": 1, "tokens": ["<new>"], "used": []}
    assert complaints(findings) == {"folder-is-whole": "warning"}  # without a row there is nothing to average
    template = "{% for m in messages %}<new>{{ m['content'] }}<|end|>{% endfor %}"
    (homeless / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert complaints(fit(homeless))["folder-is-whole"] == "error"


def test_the_tokenizer_of_another_family_is_told_in_seconds(child: Path, fit: Broken) -> None:
    data = json.loads((child / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = data["model"]["vocab"]
    vocabulary |= {f"word{i}": i for i in range(len(vocabulary), 150_000)}
    (child / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    start = time.perf_counter()
    findings = fit(child)
    assert time.perf_counter() - start < 10
    assert complaints(findings)["folder-is-whole"] == "warning"
    assert len(json.dumps([one.to_dict() for one in findings])) < 20_000


def test_other_begin_tokens_are_a_warning(child: Path, fit: Broken) -> None:
    edit(child / "tokenizer_config.json", bos_token="<|system|>")
    assert complaints(fit(child)) == {"special-tokens": "warning"}


def test_mixed_types_are_a_note(child: Path, make_model: MakeModel, tmp_path: Path, fit: Broken) -> None:
    half = make_model(tmp_path / "half")
    tensors = {name: t.to(torch.float16) for name, t in load_file(half / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    findings = fit(half)
    assert worst(findings) == "note"
    assert sorted(named(findings, "same-dtype").evidence.values()) == ["bfloat16", "float16"]


def test_integer_weights_are_an_error(make_model: MakeModel, tmp_path: Path, fit: Broken) -> None:
    quantised = make_model(tmp_path / "quantised")
    tensors = {name: t.to(torch.int8) for name, t in load_file(quantised / "model.safetensors").items()}
    save_file(tensors, quantised / "model.safetensors", metadata={"format": "pt"})
    assert complaints(fit(quantised)) == {"same-dtype": "error"}


def test_templates_are_shown_side_by_side(llama: Any, child: Path) -> None:
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|end|>{% endfor %}"
    (child / "chat_template.jinja").write_text(template, encoding="utf-8")
    found = named(parents_fit(facts_of(Path(llama.one), child), None, tokenizer_source=None), "chat-template")
    assert found.level == "warning"
    ours, theirs = found.evidence.values()
    assert "<|user|>What is the capital of France?<|end|>" in ours
    assert "[system] You are brief.<|end|>[user] What is the capital" in theirs


def test_the_template_of_a_base_that_answers_nothing_does_not_count(llama: Any, child: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(child, tmp_path / "twin"))
    (base,) = facts_of(Path(llama.base))
    for folder in (child, twin):
        (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}")
    assert worst(parents_fit(facts_of(child, twin), base, tokenizer_source=None)) == "ok"
    for folder in (child, twin):
        (folder / "chat_template.jinja").unlink()
    found = named(parents_fit(facts_of(child, twin), base, tokenizer_source=None), "chat-template")
    assert found.message == "Conversations are written alike by base."


def test_white_space_between_turns_is_a_note(llama: Any, child: Path) -> None:
    path = child / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8") + "{{ '\\n' }}", encoding="utf-8")
    findings = parents_fit(facts_of(Path(llama.one), child), None, tokenizer_source=None)
    assert named(findings, "chat-template").level == "note"


def test_a_template_may_refuse_a_system_turn_but_no_answer(llama: Any, child: Path, tmp_path: Path) -> None:
    path = child / "chat_template.jinja"
    own = path.read_text(encoding="utf-8")
    path.write_text("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + own)
    twin = Path(shutil.copytree(child, tmp_path / "twin"))
    assert worst(parents_fit(facts_of(child, twin), None, tokenizer_source=None)) == "ok"
    path.write_text("{% if %}")
    found = parents_fit(facts_of(child, twin), None, tokenizer_source=None)
    assert complaints(found) == {"chat-template": "error"}


def test_without_any_template_the_run_must_choose_one(child: Path, tmp_path: Path) -> None:
    (child / "chat_template.jinja").unlink()
    twin = Path(shutil.copytree(child, tmp_path / "twin"))
    facts = facts_of(child, twin)
    assert complaints(parents_fit(facts, None, tokenizer_source=None)) == {"chat-template": "error"}
    chosen = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert worst(parents_fit(facts, None, tokenizer_source=None, chat_template=chosen)) == "ok"


def test_a_chosen_template_is_compared_with_the_parents_own(family: Any) -> None:
    base, one, two = facts_of(*family.folders.values())
    chosen = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    findings = parents_fit([one, two], base, tokenizer_source=None, chat_template=chosen)
    assert [f.where for f in findings if f.level == "warning"] == ["one", "two"]  # a base answers nothing


def test_pickles_are_refused_with_the_way_out(child: Path, fit: Broken) -> None:
    torch.save({}, child / "training_args.bin")
    torch.save({}, child / "pytorch_model.bin")
    assert worst(fit(child)) == "ok"  # beside safetensors nobody reads it
    for path in child.glob("*.safetensors*"):
        path.unlink()
    findings = fit(child)
    assert complaints(findings) == {"pickle-weights": "error"}
    assert "evolve convert" in named(findings, "pickle-weights").remedy


def test_code_of_an_unknown_architecture_is_refused_and_never_run(child: Path, fit: Broken) -> None:
    trace = child / "ran"
    (child / "own.py").write_text(f"open({str(trace)!r}, 'w')\n")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit(child / "config.json", model_type="own", architectures=["OwnModel"], auto_map=own)
    edit(child / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    found = named(fit(child), "remote-code")
    assert found.level == "error"
    assert "own.Model" in found.message
    assert "transformers knows itself" in found.remedy
    assert named(fit(child, allow_remote_code=["child"]), "remote-code").level == "error"  # nothing here can run it
    assert not trace.exists()


def test_code_beside_a_known_architecture_can_be_allowed_by_name_and_is_not_run(child: Path, fit: Broken) -> None:
    edit(child / "config.json", auto_map={"AutoModelForCausalLM": "own.Model"})
    assert "genome.allow_remote_code" in named(fit(child), "remote-code").remedy
    (name,) = {one.where for one in fit(child) if one.check == "remote-code"}
    assert named(fit(child, allow_remote_code=[name]), "remote-code").level == "note"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", "[1]"),
        ("config.json", '{"model_type": "nobody-knows-this", "architectures": ["OwnModel"]}'),
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "\x00"),
        ("generation_config.json", "{"),
        ("generation_config.json", "[]"),
        ("model.safetensors.index.json", "{}"),
        ("model.safetensors.index.json", "[]"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}'),
        ("model.safetensors.index.json", None),
        ("model-00001-of-00004.safetensors", "not tensors"),
    ],
)
def test_a_broken_file_is_a_finding(child: Path, fit: Broken, file: str, content: str | None) -> None:
    assert (child / file).exists()
    (child / file).unlink()
    if content is not None:
        (child / file).write_text(content, encoding="utf-8")
    findings = fit(child)
    assert complaints(findings) == {"files-readable": "error"}
    assert all(str(child) in one.message or one.where == "child" for one in findings if one.level == "error")


def test_no_folder_at_all_is_a_finding(tmp_path: Path, fit: Broken) -> None:
    assert complaints(fit(tmp_path / "nowhere")) == {"files-readable": "error"}


def test_a_7b_model_is_checked_by_its_headers(llama: Any, child: Path, tmp_path: Path) -> None:
    for path in child.glob("*.safetensors*"):
        path.unlink()
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    edit(child / "config.json", **sizes, num_key_value_heads=32, head_dim=128, vocab_size=32000)
    shapes = {"model.embed_tokens.weight": (32000, 4096), "lm_head.weight": (32000, 4096), "model.norm.weight": (4096,)}
    for layer in range(32):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{p}_proj.weight": (4096, 4096) for p in "qkvo"}
        shapes |= {f"{at}.mlp.{p}_proj.weight": (11008, 4096) for p in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (4096, 11008)
        shapes |= {f"{at}.{n}_layernorm.weight": (4096,) for n in ("input", "post_attention")}
    write_sparse(child / "model.safetensors", shapes)
    twin = tmp_path / "twin"
    shutil.copytree(child, twin, ignore=shutil.ignore_patterns("*.safetensors"))
    (twin / "model.safetensors").hardlink_to(child / "model.safetensors")
    start = time.perf_counter()
    findings = parents_fit(facts_of(child, twin), None, tokenizer_source=None)
    seconds = time.perf_counter() - start
    assert worst(findings) == "ok", findings
    assert seconds < 1


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file with true headers and a hole for its values."""
    header: dict[str, Any] = {}
    position = 0
    for name, shape in shapes.items():
        end = position + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
