"""``evolve check`` on a table of broken set-ups, and on sound ones: each fault is found, and nothing that is none.

Each set-up is a run on small real models, prompts and settings that would start; one function breaks it. Nothing is
asked of the models: what their files, the prompts and the settings show must do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evolve.check import check
from evolve.config import parse_config
from evolve.resources import configs_dir
from fitness.findings import Finding, Level

# A run would end at once where a check found an error, and says so in the words of whatever refuses it.
REFUSED = "run-can-start"

FRAMES = (
    "What do you know about the {}?",
    "Tell a guest in one sentence why the {} matters.",
    "Where was the {} last evening, and who saw it?",
    "Write two lines of verse on the {}.",
    "Who looks after the {} while we travel?",
)
NOUNS = """
    anchor barley candle dagger easel ferry garden hammer island jacket kettle ladder mirror needle
    orchard pencil quarry ribbon saddle teapot umbrella violin window xylophone yard zebra acorn basket
    cellar donkey engine falcon glacier harbour inkwell jungle kitchen lantern meadow nutmeg oyster
    parrot quilt raincoat shepherd thimble urchin valley walnut yeast almanac bridge compass drummer elbow
    fountain goblet hedgehog icicle jigsaw keyhole lobster magnet notebook olive pigeon quiver rooster
"""
FRAMES_JA = ("{}について教えてください。", "{}はどこにありますか。", "{}を一言で言うと何ですの。", "{}がお好きですか。")
NOUNS_JA = """
    紅茶 庭園 図書館 汽車 灯台 雪山 花火 手紙 時計 帽子 猫 金魚 提灯
    刺身 和菓子 蛍 桜並木 古城 湖 砂浜 石畳 水車 風鈴 将棋 琵琶 書道
    茶室 温泉 味噌汁 抹茶 梅干し 竹林 紅葉 夕焼け 満月 流れ星 台風 稲妻 虹
    霧 港町 市場 屋台 神社 鳥居 仏像 舞台 能面 着物 草履 扇子 団扇
    風呂敷 万年筆 便箋 切手 地図 羅針盤 望遠鏡 顕微鏡 蓄音機 写真機 自転車 飛行船 潜水艦
    気球 鉱山 牧場
"""


@dataclass
class Run:
    """A run that a builder may break.

    Attributes:
        root: folder of its files; holds the models ``base``, ``one`` and ``two``.
        prompts: lines of its prompts file, 34 of either split.
        settings: laid over its config, by dotted path.
    """

    root: Path
    prompts: list[dict[str, Any]] = field(default_factory=lambda: questions(FRAMES, NOUNS.split()))
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def one(self) -> Path:
        return self.root / "one"

    @property
    def two(self) -> Path:
        return self.root / "two"

    @property
    def models(self) -> tuple[Path, Path, Path]:
        return self.one, self.two, self.base

    def without_base(self, method: str) -> None:
        self.settings |= {"genome.base_model": None, "genome.merge_method": method}

    def check(self) -> list[Finding]:
        """What ``evolve check --no-probe`` finds, with names of models and files relative to the run."""
        lines = "".join(json.dumps(line) + "\n" for line in self.prompts)
        (self.root / "prompts.jsonl").write_text(lines, encoding="utf-8")
        data = {
            "genome": {"models": ["one", "two"], "base_model": "base", "merge_method": "task_arithmetic"},
            "budget": {"max_fevals": 16, "popsize": 6},
            "prompts": {"files": ["prompts.jsonl"]},
            "generation": {"preset": "greedy-short", "max_new_tokens": 8},
            "fitness": {"terms": [{"metric": "repetition", "weight": -1}, {"metric": "chrf"}]},
            "workers": {"engine": "transformers", "count": 1},
        }
        overrides = [f"{path}={json.dumps(value)}" for path, value in self.settings.items()]
        report = check(parse_config(data, source=str(self.root / "run.yaml"), overrides=overrides), ask=False)
        json.dumps(report.to_dict(), allow_nan=False)
        return [replace(one, **self._relative(one)) for one in report.findings]

    def _relative(self, one: Finding) -> dict[str, str]:
        texts = {"where": one.where, "message": one.message, "remedy": one.remedy}
        return {key: text.replace(f"{self.root}/", "") for key, text in texts.items()}


def questions(frames: Sequence[str], nouns: Sequence[str]) -> list[dict[str, Any]]:
    splits = ("search", "validation")
    return [
        {"id": f"q{i}", "prompt": frames[i % len(frames)].format(noun), "reference": noun, "split": splits[i % 2]}
        for i, noun in enumerate(nouns)
    ]


Build = Callable[[Run], None]


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        build: breaks a run.
        check, level: of the finding.
        at: the models, files or settings that it must point at, one finding each.
        says: stands in its message or remedy.
        also: checks that may complain as well, since the fault has a second side.
        family: of the models.
    """

    build: Build
    check: str
    level: Level
    at: tuple[str, ...]
    says: str
    also: frozenset[str]
    family: str


BROKEN: dict[str, Case] = {}
SOUND: dict[str, tuple[str, Build]] = {}


def broken(
    fault: str, check: str, level: Level, at: str, says: str, *, also: str = "", family: str = "llama"
) -> Callable[[Build], Build]:
    """Enters a row; ``at`` and ``also`` are separated by blanks."""

    def enter(build: Build) -> Build:
        assert fault not in BROKEN
        places = ("the config",) if at == "the config" else tuple(at.split())
        BROKEN[fault] = Case(build, check, level, places, says, frozenset(also.split()), family)
        return build

    return enter


def sound(what: str, family: str = "llama") -> Callable[[Build], Build]:
    def enter(build: Build) -> Build:
        assert what not in SOUND
        SOUND[what] = (family, build)
        return build

    return enter


def edit(path: Path, *drop: str, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    for key in drop:
        data.pop(key, None)
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """In one file, in place of those that were there."""
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )


def mix(folder: Path, *parts: tuple[float, Path]) -> None:
    """Weights that are a sum of others'."""
    several = [(weight, tensors_of(part)) for weight, part in parts]
    names = several[0][1]
    write_tensors(folder, {n: sum(w * t[n].float() for w, t in several).to(names[n].dtype) for n in names})


def random_model(folder: Path, seed: int = 7, **changes: Any) -> None:
    """Puts weights that nobody trained in place of the folder's, with some settings changed; its tokenizer stays."""
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    edit(folder / "config.json", **changes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.to(torch.bfloat16).save_pretrained(folder)


def more_tokens(folder: Path, *tokens: str, rows: int | None = None) -> None:
    """Adds tokens to the tokenizer, and rows to the embedding, whose old rows stay."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
    tokenizer.save_pretrained(folder)
    pad_rows(folder, rows or len(tokenizer))


def pad_rows(folder: Path, rows: int) -> None:
    torch.manual_seed(rows)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(rows)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    model.to(torch.bfloat16).save_pretrained(folder)


def template(*folders: Path, text: str) -> None:
    for folder in folders:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def turns(close: str) -> str:
    """A chat template that writes this after each message."""
    return (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
        + close
        + "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def rename_tokens(folder: Path, names: dict[str, str]) -> None:
    """Renames tokens wherever tokenizer.json names them."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    model = data["model"]
    model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
    model["merges"] = [m for m in model["merges"] if "".join(m) not in names and not set(m) & set(names)]
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    path.write_text(json.dumps(data), encoding="utf-8")


def adapter(base: Path, folder: Path) -> None:
    """A LoRA adapter of random numbers."""
    torch.manual_seed(3)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(folder)


def card(folder: Path, licence: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n", encoding="utf-8")


# The models' files.


@broken("a model is not there", "models-found", "error", "./tow", "Did you mean two", also=REFUSED)
def _(run: Run) -> None:
    run.settings["genome.models"] = ["one", "./tow"]


@broken("config.json is no JSON", "models-found", "error", "one", "one/config.json", also=REFUSED)
def _(run: Run) -> None:
    (run.one / "config.json").write_text('{"model_type": "llama",', encoding="utf-8")


@broken("config.json names no architecture", "models-found", "error", "two", "architectures", also=REFUSED)
def _(run: Run) -> None:
    edit(run.two / "config.json", "architectures")


@broken("the weights are pickles", "models-found", "error", "one", "evolve convert one", also=REFUSED)
def _(run: Run) -> None:
    torch.save(tensors_of(run.one), run.one / "pytorch_model.bin")
    for path in run.one.glob("model*.safetensors*"):
        path.unlink()


@broken("the weights are quantised", "models-found", "error", "two", "unquantised version", also=REFUSED)
def _(run: Run) -> None:
    edit(run.two / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


@broken("the weights are integers", "same-dtype", "error", "one", "stored as I8", also=REFUSED)
def _(run: Run) -> None:
    write_tensors(run.one, {name: tensor.to(torch.int8) for name, tensor in tensors_of(run.one).items()})


@broken("there are no weights", "models-found", "error", "two", "two has no weights", also=REFUSED)
def _(run: Run) -> None:
    for path in run.two.glob("model*.safetensors*"):
        path.unlink()


@broken("a shard is missing", "files-readable", "error", "one", "fetch the model again", also=REFUSED)
def _(run: Run) -> None:
    sorted(run.one.glob("model-*.safetensors"))[1].unlink()


@broken("a shard was cut", "files-readable", "error", "two", "is damaged", also=REFUSED)
def _(run: Run) -> None:
    path = sorted(run.two.glob("model-*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-100])


@broken("the base's only file was cut", "files-readable", "error", "base", "is damaged", also=REFUSED, family="qwen")
def _(run: Run) -> None:
    path = run.base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])


@broken("a weight is NaN", "weights-finite", "error", "one", "model.layers.1.mlp.up_proj.weight")
def _(run: Run) -> None:
    tensors = tensors_of(run.one)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    write_tensors(run.one, tensors)


@broken("a weight of the base overflowed", "weights-finite", "error", "base", "infinity", family="qwen")
def _(run: Run) -> None:
    tensors = tensors_of(run.base)
    tensors["model.embed_tokens.weight"][0, 0] = float("inf")
    write_tensors(run.base, tensors)


@broken("a layer has no weights", "folder-is-whole", "error", "one", "no weights for 2", also=f"same-shapes {REFUSED}")
def _(run: Run) -> None:
    kept = {name: tensor for name, tensor in tensors_of(run.one).items() if ".layers.2." not in name}
    write_tensors(run.one, kept)


@broken(
    "config.json has more layers than the weights",
    "folder-is-whole",
    "error",
    "two",
    "no weights for 3",
    also=f"same-architecture {REFUSED}",
)
def _(run: Run) -> None:
    edit(run.two / "config.json", num_hidden_layers=4)


@broken("config.json has another vocabulary than the weights", "folder-is-whole", "error", "one", "400 rows")
def _(run: Run) -> None:
    edit(run.one / "config.json", vocab_size=416)


@broken("no model has a tensor that all must have", REFUSED, "error", "the config", "mlp.up_proj.weight")
def _(run: Run) -> None:
    for folder in run.models:
        tensors = tensors_of(folder)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        write_tensors(folder, tensors)


@broken("the index of the shards is no index", "files-readable", "error", "one", "index.json is damaged", also=REFUSED)
def _(run: Run) -> None:
    (run.one / "model.safetensors.index.json").write_text("[]", encoding="utf-8")


@broken("generation_config.json is no JSON", "files-readable", "error", "two", "generation_config.json", also=REFUSED)
def _(run: Run) -> None:
    (run.two / "generation_config.json").write_text("{", encoding="utf-8")


@broken("a pointer of git-lfs in place of a tokenizer", "files-readable", "error", "base", "tokenizer", also=REFUSED)
def _(run: Run) -> None:
    (run.base / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")


@broken("the folder asks to run code", "remote-code", "error", "one", "remove auto_map")
def _(run: Run) -> None:
    edit(run.one / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.OwnModel"})


@broken(
    "only code of the folder's own can run it",
    "remote-code",
    "error",
    "one",
    "modeling_own.OwnModel",
    also=f"same-architecture files-readable {REFUSED}",
)
def _(run: Run) -> None:
    (run.one / "modeling_own.py").write_text("raise SystemExit('was run')", encoding="utf-8")
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    edit(run.one / "config.json", model_type="own", architectures=["OwnModel"], auto_map=own)
    coded = {"AutoTokenizer": ["modeling_own.OwnTokenizer", None]}
    edit(run.one / "tokenizer_config.json", auto_map=coded, tokenizer_class="OwnTokenizer")


@broken("nobody knows the model type", "files-readable", "error", "one", "a transformers that knows", also=REFUSED)
def _(run: Run) -> None:
    edit(run.one / "config.json", model_type="nobody-knows-this")


# Models that are no family.


@broken("another architecture", "same-architecture", "error", "two", "model_type: llama against qwen2", also=REFUSED)
def _(run: Run) -> None:
    edit(run.two / "config.json", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    random_model(run.two, tie_word_embeddings=False, use_sliding_window=False)


@broken("more layers", "same-architecture", "error", "two", "num_hidden_layers: 3 against 4", also=REFUSED)
def _(run: Run) -> None:
    random_model(run.two, num_hidden_layers=4)


@broken("other heads of the same width", "same-architecture", "error", "one", "num_attention_heads: 2 against 4")
def _(run: Run) -> None:
    edit(run.one / "config.json", num_attention_heads=4, num_key_value_heads=2, head_dim=16)


@broken("other shapes", "same-shapes", "error", "one", "Choose fine-tunes of one base", also=REFUSED)
def _(run: Run) -> None:
    random_model(run.one, intermediate_size=96)


@broken("embeddings tied in one", "tied-embeddings", "error", "two", "tie_word_embeddings is True", also=REFUSED)
def _(run: Run) -> None:
    edit(run.two / "config.json", tie_word_embeddings=True)


@broken("another rope theta", "same-positions", "warning", "one", "rope_theta: 10000.0 against 1000000.0")
def _(run: Run) -> None:
    edit(run.one / "config.json", "rope_scaling", rope_parameters={"rope_type": "default", "rope_theta": 1e6})


@broken("one parent twice", "parents-differ", "warning", "genome.models", "one and two have the same weights")
def _(run: Run) -> None:
    mix(run.two, (1, run.one))


@broken("a parent that is its base", "parents-differ", "warning", "genome.models", "two is base itself", family="qwen")
def _(run: Run) -> None:
    mix(run.two, (1, run.base))


@broken("a parent that is all but its base", "parents-differ", "warning", "genome.models", "times as far")
def _(run: Run) -> None:
    tensors = {name: tensor.float() for name, tensor in tensors_of(run.base).items()}
    torch.manual_seed(11)
    write_tensors(run.two, {n: t + 1e-3 * t.std().nan_to_num(0) * torch.randn_like(t) for n, t in tensors.items()})


@broken("parents that moved in one direction", "parents-differ", "warning", "genome.models", "one direction")
def _(run: Run) -> None:
    mix(run.two, (1.5, run.one), (-0.5, run.base))


@broken("a base that nobody descends from", "base-plausible", "warning", "genome.base_model", "no ancestor of")
def _(run: Run) -> None:
    random_model(run.base)


@broken("a base whose fine-tune is the parents'", "base-plausible", "warning", "genome.base_model", "common ancestor")
def _(run: Run) -> None:
    mix(run.two, (1, run.one), (0.2, run.two), (-0.2, run.base))


@broken("strangers are averaged", "parents-related", "warning", "genome.models", "no relatives")
def _(run: Run) -> None:
    run.without_base("linear")
    random_model(run.two)


@broken("strangers are interpolated", "parents-related", "warning", "genome.models", "no relatives", family="qwen")
def _(run: Run) -> None:
    run.without_base("slerp")
    random_model(run.one)


@broken(
    "an adapter of another model",
    "models-found",
    "error",
    "base+style",
    "does not fit its base",
    also=f"{REFUSED} same-architecture",
)
def _(run: Run) -> None:
    adapter(run.base, run.root / "style")
    random_model(run.base, hidden_size=32, num_attention_heads=1, head_dim=32)
    run.settings["genome.models"] = ["base+style", "two"]


@broken("an adapter that was cut", "models-found", "error", "base+style", "base+style", also=REFUSED)
def _(run: Run) -> None:
    adapter(run.base, run.root / "style")
    path = run.root / "style" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    run.settings["genome.models"] = ["base+style", "two"]


@broken("another activation", "same-details", "warning", "one", "hidden_act: silu against gelu")
def _(run: Run) -> None:
    edit(run.one / "config.json", hidden_act="gelu")


# Licences.


@broken("a licence without derivatives", "licences", "warning", "genome.models", "cc-by-nc-nd-4.0")
def _(run: Run) -> None:
    card(run.one, "apache-2.0")
    card(run.two, "cc-by-nc-nd-4.0")


@broken("a parent not for commerce", "licences", "note", "genome.models", "cc-by-nc-4.0")
def _(run: Run) -> None:
    card(run.base, "mit")
    card(run.two, "cc-by-nc-4.0")


# Tokenizers.


@broken("no tokenizer", "files-readable", "error", "one", "has no tokenizer", also=REFUSED)
def _(run: Run) -> None:
    (run.one / "tokenizer.json").unlink()


@broken("a tokenizer that cannot be read", "files-readable", "error", "two", "tokenizer", also=REFUSED)
def _(run: Run) -> None:
    (run.two / "tokenizer.json").write_text("{}", encoding="utf-8")


@broken("the tokenizer of another family", "same-vocabulary", "error", "one", "genome.tokenizer_source")
def _(run: Run) -> None:
    own = AutoTokenizer.from_pretrained(run.one)
    own.train_new_from_iterator([f"{noun} {noun}" for noun in NOUNS.split()], len(own)).save_pretrained(run.one)


@broken("two tokens changed places", "same-vocabulary", "error", "two", "2 tokens have other ids")
def _(run: Run) -> None:
    rename_tokens(run.two, {"a": "b", "b": "a"})


@broken("a reserved token was renamed", "same-vocabulary", "warning", "one", "<|reserved|>", also="chat-template")
def _(run: Run) -> None:
    rename_tokens(run.one, {"<|system|>": "<|reserved|>"})


@broken("more tokens and nothing that aligns them", "same-shapes", "error", "two", "tokenizer_source", also=REFUSED)
def _(run: Run) -> None:
    more_tokens(run.two, "<|tool|>", "<|result|>")


@broken("a token that one parent never saw", "added-tokens", "warning", "two", "only two has <|tool|>")
def _(run: Run) -> None:
    for folder in run.models:
        pad_rows(folder, 416)
    more_tokens(run.two, "<|tool|>", rows=416)


@broken("a token without a row", "folder-is-whole", "warning", "one", "resize_token_embeddings")
def _(run: Run) -> None:
    more_tokens(run.one, "<|tool|>", rows=400)


@broken(
    "a chat template that writes a token without a row",
    "folder-is-whole",
    "error",
    "one",
    "<|turn|>",
    also="chat-template",
)
def _(run: Run) -> None:
    more_tokens(run.one, "<|turn|>", rows=400)
    template(run.one, text="<|turn|>" + turns("{{ eos_token }}"))


@broken("another begin token", "special-tokens", "warning", "two", "bos <|system|> (5) against <s> (2)")
def _(run: Run) -> None:
    edit(run.two / "tokenizer_config.json", bos_token="<|system|>")


# The end of an answer.


@broken("generation does not stop at the end token", "eos-agrees", "note", "one", '"eos_token_id": [1, 5]')
def _(run: Run) -> None:
    edit(run.one / "generation_config.json", eos_token_id=5)


@broken("no config names an end token", "eos-agrees", "note", "two", '"eos_token_id": [1]')
def _(run: Run) -> None:
    edit(run.two / "generation_config.json", "eos_token_id")
    edit(run.two / "config.json", eos_token_id=None)


@broken("no file names an end token", "eos-agrees", "warning", "one", "runs to the limit", also="turn-ends pad-is-eos")
def _(run: Run) -> None:
    edit(run.one / "generation_config.json", "eos_token_id")
    edit(run.one / "config.json", eos_token_id=None)
    edit(run.one / "tokenizer_config.json", "eos_token")


@broken("an end token beyond the embedding", "special-ids-exist", "warning", "two", "400 rows", also="eos-agrees")
def _(run: Run) -> None:
    edit(run.two / "generation_config.json", eos_token_id=4000)


@broken(
    "every end token beyond the embedding",
    "special-ids-exist",
    "error",
    "one",
    "cannot produce",
    also="folder-is-whole turn-ends",
)
def _(run: Run) -> None:
    more_tokens(run.one, "<|over|>", rows=400)
    edit(run.one / "tokenizer_config.json", eos_token="<|over|>")
    edit(run.one / "generation_config.json", eos_token_id=400)
    edit(run.one / "config.json", eos_token_id=400)


@broken("padding is end-of-text", "pad-is-eos", "warning", "one", "evolve check labels")
def _(run: Run) -> None:
    edit(run.one / "tokenizer_config.json", pad_token="<|end|>")


@broken("there is no padding", "pad-is-eos", "note", "one two", "no padding token")
def _(run: Run) -> None:
    for folder in run.models:
        edit(folder / "tokenizer_config.json", "pad_token")


@broken("turns end with a token that ends nothing", "turn-ends", "error", "one two", '"eos_token_id": [1, 5]')
def _(run: Run) -> None:
    template(*run.models, text=turns("<|system|>"))


@broken("turns end with text", "turn-ends", "warning", "one two", "Set generation.stop: ['### user:']", family="qwen")
def _(run: Run) -> None:
    text = "{% for m in messages %}\n### {{ m['role'] }}: {{ m['content'] }}{% endfor %}\n### assistant:"
    template(*run.models, text=text)


@broken("nothing is written after an answer", "turn-ends", "warning", "one two", "{{ eos_token }}")
def _(run: Run) -> None:
    template(*run.models, text="{% for m in messages %}{{ m['content'] }}{% endfor %}")


# Chat templates.


@broken("parents with two chat templates", "chat-template", "warning", "two", "otherwise than")
def _(run: Run) -> None:
    template(run.two, text="{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|end|>{% endfor %}")


@broken("a chat template that none was trained with", "chat-template", "warning", "one two", "chat.template")
def _(run: Run) -> None:
    run.settings["chat.template"] = "vicuna"


@broken("a chat template that cannot be read", "chat-template", "error", "one", "Correct it", also=REFUSED)
def _(run: Run) -> None:
    template(run.one, text="{% for m in messages %}{{ m['content'] }}")


@broken(
    "a chosen template that cannot be read",
    "chat-template",
    "error",
    "chat.template",
    "Choose or correct",
    also=REFUSED,
)
def _(run: Run) -> None:
    (run.root / "own.jinja").write_text("{% if %}", encoding="utf-8")
    run.settings["chat.template"] = "own.jinja"


@broken("a chosen template that is not there", "chat-template", "error", "chat.template", "llama-2", also=REFUSED)
def _(run: Run) -> None:
    run.settings["chat.template"] = "llama2"


@broken("a chat template that leaves out the system message", "prompts-written", "warning", "chat.template", "system")
def _(run: Run) -> None:
    template(*run.models, text=turns("<|end|>").replace("in messages", "in messages if m['role'] != 'system'"))
    run.settings["prompts.system"] = "You are brief."


@broken("a chat template that leaves out the question", "prompts-written", "error", "chat.template", "question")
def _(run: Run) -> None:
    template(*run.models, text=turns("<|end|>").replace("in messages", "in messages[:2]"))
    for line in run.prompts[:3]:
        texts = ("Is the sky blue?", "Yes.", line.pop("prompt"))
        roles = ("user", "assistant", "user")
        line["messages"] = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


@broken("a chat template that stops before the answer", "answer-begins", "warning", "one two", "{{ '<|assistant|>' }}")
def _(run: Run) -> None:
    template(*run.models, text=turns("<|end|>").partition("{% if add")[0])


@broken("no chat template at all", "chat-template", "error", "chat.template", "llama-2, vicuna", also=REFUSED)
def _(run: Run) -> None:
    for folder in run.models:
        (folder / "chat_template.jinja").unlink()


@broken("a chat template without system messages", REFUSED, "error", "the config", "roles system, user")
def _(run: Run) -> None:
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template(*run.models, text=refusal + turns("<|end|>"))
    run.settings["prompts.system"] = "You are brief."


# Prompts.


@broken("a line of the prompts is broken", "prompts-read", "error", "prompts.files", "prompts.jsonl:3", also=REFUSED)
def _(run: Run) -> None:
    run.prompts[2] = {"prompt": "Where?", "answer": "Here."}


@broken("a question of both splits", "prompts-read", "error", "prompts.files", "one for validation", also=REFUSED)
def _(run: Run) -> None:
    run.prompts[1]["prompt"] = run.prompts[0]["prompt"]


@broken("a search question all but asked in validation", "prompts-leak", "warning", "prompts.files", "q0")
def _(run: Run) -> None:
    run.prompts[1]["prompt"] = run.prompts[0]["prompt"].upper().replace("?", " ?!")


@broken("a question twice", "duplicate-prompts", "warning", "prompts.files", "q4")
def _(run: Run) -> None:
    run.prompts.append({**run.prompts[4], "id": "again"})


@broken("too few prompts to search with", "few-prompts", "warning", "prompts.files", "29 prompts for search")
def _(run: Run) -> None:
    run.settings["prompts.search_limit"] = 29


@broken("a metric without its references", "references", "error", "fitness.terms[1]", "q0, q1, q2", also=REFUSED)
def _(run: Run) -> None:
    for line in run.prompts[:40]:
        del line["reference"]


@broken("a prompt beyond the context", "prompt-length", "error", "prompts.files", "q7", also=REFUSED)
def _(run: Run) -> None:
    run.prompts[7]["prompt"] = "Sum this up: " + " ".join(NOUNS.split())


@broken("an answer beyond the context", "prompt-length", "error", "prompts.files", "max_new_tokens", also=REFUSED)
def _(run: Run) -> None:
    run.settings["generation.max_new_tokens"] = 255


# Sound ones.


@sound("Llama, untied, in shards")
def _(run: Run) -> None:
    assert len(list(run.one.glob("model-*.safetensors"))) > 1


@sound("Qwen2, tied, by ties", "qwen")
def _(run: Run) -> None:
    run.settings["genome.merge_method"] = "ties"


@sound("children with tokens of their own, aligned by a union")
def _(run: Run) -> None:
    more_tokens(run.one, "<|tool|>")
    more_tokens(run.two, "<|think|>", "<|answer|>")
    run.settings["genome.tokenizer_source"] = "union"


@sound("a chat model with a token for padding, aligned with the base", "qwen")
def _(run: Run) -> None:
    more_tokens(run.two, "<pad>")
    edit(run.two / "tokenizer_config.json", pad_token="<pad>")
    run.settings["genome.tokenizer_source"] = "base"


@sound("an adapter as a parent")
def _(run: Run) -> None:
    adapter(run.base, run.root / "style")
    run.settings["genome.models"] = ["base+style", "two"]


@sound("two fine-tunes interpolated, no base")
def _(run: Run) -> None:
    run.without_base("slerp")


@sound("the mean of two fine-tunes, no base", "qwen")
def _(run: Run) -> None:
    run.without_base("linear")


@sound("Japanese prompts under a system message")
def _(run: Run) -> None:
    run.prompts = questions(FRAMES_JA, NOUNS_JA.split())
    run.settings["prompts.system"] = "あなたは丁寧な令嬢です。"


@sound("Llama 2's template for models without one")
def _(run: Run) -> None:
    for folder in run.models:
        (folder / "chat_template.jinja").unlink()
    run.settings["chat.template"] = "llama-2"


@sound("Vicuna's template for parents trained with it, over a plain base", "qwen")
def _(run: Run) -> None:
    for folder in (run.one, run.two):
        shutil.copy(configs_dir() / "templates" / "vicuna.jinja", folder / "chat_template.jinja")
    (run.base / "chat_template.jinja").unlink()
    run.settings["chat.template"] = "vicuna"


@sound("chat models over a plain base that ends texts with another token")
def _(run: Run) -> None:
    (run.base / "chat_template.jinja").unlink()
    edit(run.base / "tokenizer_config.json", eos_token="<|system|>")
    edit(run.base / "config.json", eos_token_id=5)
    edit(run.base / "generation_config.json", eos_token_id=5)


@sound("parents with one template over a base with another")
def _(run: Run) -> None:
    template(run.base, text="{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|end|>{% endfor %}")


@sound("texts end with one token, turns with another, generation with both")
def _(run: Run) -> None:
    for folder in run.models:
        edit(folder / "tokenizer_config.json", eos_token="<|system|>", pad_token="<|system|>")
        edit(folder / "config.json", eos_token_id=5, pad_token_id=5)
        edit(folder / "generation_config.json", eos_token_id=[1, 5], pad_token_id=5)


@sound("weights stored in two types, licences that allow it")
def _(run: Run) -> None:
    write_tensors(run.two, {name: tensor.half() for name, tensor in tensors_of(run.two).items()})
    for folder, licence in zip(run.models, ("mit", "apache-2.0", "llama2"), strict=True):
        card(folder, licence)


@sound("metrics without references, several settings searched")
def _(run: Run) -> None:
    run.prompts = [{"prompt": line["prompt"], "split": line["split"]} for line in run.prompts]
    run.settings |= {"fitness.terms": [{"metric": "repetition", "weight": -1}], "genome.layer_granularity": 1}


@pytest.fixture
def make_run(
    llama: Any, qwen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, Build], Run]]:
    monkeypatch.setenv("EVOLVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def make(family: str, build: Build) -> Run:
        source = {"llama": llama, "qwen": qwen}[family].root
        run = Run(Path(shutil.copytree(source, tmp_path / "run")))
        build(run)
        return run

    return make


@pytest.mark.parametrize("case", [pytest.param(case, id=fault) for fault, case in BROKEN.items()])
def test_a_broken_set_up_is_found_and_nothing_that_is_not_broken(case: Case, make_run: Any) -> None:
    findings = make_run(case.family, case.build).check()
    named = [one for one in findings if (one.check, one.level) == (case.check, case.level)]
    others = [one for one in findings if one.level in ("warning", "error") and one not in named]
    assert sorted(one.where for one in named) == sorted(case.at), others + named
    assert all(case.says in f"{one.message} {one.remedy}" for one in named), named
    assert {one.check for one in others} <= case.also, others


@pytest.mark.parametrize(("family", "build"), [pytest.param(*given, id=what) for what, given in SOUND.items()])
def test_a_sound_set_up_gives_no_warning_and_no_error(family: str, build: Build, make_run: Any) -> None:
    findings = make_run(family, build).check()
    assert [one for one in findings if one.level in ("warning", "error")] == []
    assert {"same-vocabulary", "parents-differ", "turn-ends", "prompts-leak", "prompt-length", REFUSED} <= {
        one.check for one in findings
    }


def test_the_table_is_as_large_as_it_was_promised() -> None:
    assert len(BROKEN) >= 25
    assert len(SOUND) >= 5
