"""Tiny real models: a sharded Llama family with a head of its own, and a Qwen2 family with tied embeddings."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from mergekit import merge_methods
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods.base import BasePolicy, ParameterScope
from mergekit.options import MergeOptions
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from fitness.generation import Generation
from fitness.responses import Response
from workers.engine import EngineSpec
from workers.job import Job, Transcript
from workers.models import Parent
from workers.pool import Pool
from workers.recipe import Recipe
from workers.skeleton import build_skeleton, tokenise

# The models are tiny, and threads that spin for each other on shared cores are a thousand times slower than one.
torch.set_num_threads(1)

TEXT = [
    "The river runs past the old mill and the quiet village below the hill.",
    "What is the capital of France? The capital of France is Paris.",
    "お茶はいかがですか。ええ、いただきますわ。",
    "空の色は何ですか。空の色は青です。",
    "One two three four five six seven eight nine ten.",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests for a GPU are skipped, with the reason, where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU that torch can use"))


@dataclass(frozen=True)
class Family:
    """Models of one architecture: a base and two children, named by their absolute folders."""

    root: Path

    @property
    def base(self) -> str:
        return str(self.root / "base")

    @property
    def one(self) -> str:
        return str(self.root / "one")

    @property
    def two(self) -> str:
        return str(self.root / "two")

    @property
    def folders(self) -> dict[str, Path]:
        return {name: Path(name) for name in (self.base, self.one, self.two)}

    @property
    def parents(self) -> dict[str, Parent]:
        return {name: Parent(name, folder, lora=False) for name, folder in self.folders.items()}

    def recipe(self, method: str, *, weight: float = 0.5, **parameters: Any) -> Recipe:
        """One and two merged by ``method`` with every parameter that it requires, and these."""
        return method_recipe(self, method, weight, parameters)


def method_recipe(family: Family, method: str, weight: float, parameters: dict[str, Any]) -> Recipe:
    spec = merge_methods.get(method).spec
    contract = spec.contract
    models = [family.one, family.two]
    base: str | None = family.base
    if contract.base in (BasePolicy.IGNORED, BasePolicy.FORBIDDEN):
        base = None
    if contract.max_inputs is not None:
        models = models[: contract.max_inputs - (base is not None)]
    shared: dict[str, Any] = {}
    own: list[dict[str, Any]] = [{} for _ in models]
    given = {"weight": None, "density": 0.5, "epsilon": 0.1, "t": 0.3, "scale": 1.5, "gamma": 0.05} | parameters
    for parameter in spec.parameters:
        if parameter.name not in given:
            continue
        if parameter.scope == ParameterScope.SHARED:
            shared[parameter.name] = given[parameter.name]
            continue
        for index, values in enumerate(own):
            value = given[parameter.name]
            values[parameter.name] = (weight, 1 - weight)[index] if value is None else value
    if parameters.keys() - {"dtype"} - {p.name for p in spec.parameters}:
        raise ValueError(f"{method} has no such parameters: {parameters}")
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": m, "parameters": p} for m, p in zip(models, own, strict=True)],
        "parameters": shared,
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if base is not None:
        config["base_model"] = base
    random = method.startswith(("dare", "della"))
    return Recipe(config, mask_seed=1 if random else None)


def run_mergekit(recipe: Recipe, out: Path) -> Path:
    """What ``mergekit-yaml`` does with the recipe's YAML."""
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.yaml()))
    run_merge(config, str(out), MergeOptions(quiet=True, write_model_card=False))
    return out


def train_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<s>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        bos_token="<s>",
        chat_template=TEMPLATE,
    )


def build_model(kind: str, vocab_size: int, *, seed: int, **changes: Any) -> torch.nn.Module:
    """Random weights, scaled so that answers vary with the merge."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.15,
    } | changes
    torch.manual_seed(seed)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **sizes))
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **sizes))


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path, shard: str = "5GB") -> Path:
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


def build_family(root: Path, kind: str, *, shard: str) -> Family:
    tokenizer = train_tokenizer()
    for seed, name in enumerate(("base", "one", "two")):
        model = build_model(kind, len(tokenizer), seed=0)
        if name != "base":
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.6 * parameter.std().nan_to_num(0.1))
        save(model, tokenizer, root / name, shard)
    return Family(root)


@pytest.fixture(scope="session")
def judge_module() -> ModuleType:
    """``tests/fitness/judge_server.py``, for tests of other packages."""
    spec = importlib.util.spec_from_file_location("judge_server", Path(__file__).parent / "fitness" / "judge_server.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Llama, untied, in several shards."""
    return build_family(tmp_path_factory.mktemp("llama"), "llama", shard="100KB")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Qwen2, tied embeddings and attention biases, one file."""
    return build_family(tmp_path_factory.mktemp("qwen"), "qwen", shard="5GB")


@pytest.fixture(params=["llama", "qwen"])
def family(request: pytest.FixtureRequest) -> Family:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """Saves a model: ``make_model(folder, kind="llama", seed=0, tokens=["<new>"], hidden_size=32, ...)``."""

    def make(
        folder: Path,
        *,
        kind: str = "llama",
        seed: int = 0,
        shard: str = "5GB",
        tokens: Sequence[str] = (),
        **changes: Any,
    ) -> Path:
        tokenizer = train_tokenizer()
        tokenizer.add_tokens(list(tokens))
        vocab_size = changes.pop("vocab_size", len(tokenizer))
        return save(build_model(kind, vocab_size, seed=seed, **changes), tokenizer, folder, shard)

    return make


@pytest.fixture(scope="session")
def mergekit_merge() -> Callable[[Recipe, Path], Path]:
    """Merges a recipe into a folder with mergekit itself."""
    return run_mergekit


@pytest.fixture(scope="session")
def conversations() -> list[list[dict[str, str]]]:
    questions = ["hello", "What is the capital of France?", "空の色は何ですか。", "one two", "The river runs past"]
    return [[{"role": "user", "content": question}] for question in questions]


@pytest.fixture(scope="session")
def spec(llama: Family, tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    """Transformers engines on the Llama family."""
    folder = tmp_path_factory.mktemp("pool") / "skeleton"
    skeleton = build_skeleton(llama.recipe("linear"), llama.parents, folder, chat_template=None)
    return EngineSpec("transformers", skeleton, llama.folders, max_model_len=200)


@pytest.fixture(scope="session")
def pool_prompts(spec: EngineSpec, conversations: Any) -> dict[str, list[tuple[str, list[int]]]]:
    """The conversations as the prompts of a pool, two of them for validation."""
    pairs = [(f"p{i}", ids) for i, ids in enumerate(tokenise(spec.skeleton, conversations))]
    return {"search": pairs, "validation": pairs[:2]}


@dataclass(frozen=True)
class Live:
    """A pool with one live vLLM engine, and what it was built from."""

    pool: Pool
    family: Family
    skeleton: Path
    prompts: list[tuple[str, list[int]]]

    def answer(self, *recipes: Recipe) -> list[tuple[Response, ...]]:
        jobs = [Job(str(i), recipe, "search") for i, recipe in enumerate(recipes)]
        results = {int(result.job.key): result for result in self.pool.run(jobs)}
        transcripts = [results[i] for i in range(len(recipes))]
        assert all(isinstance(t, Transcript) for t in transcripts), transcripts
        return [t.responses for t in transcripts if isinstance(t, Transcript)]


def start_live(family: Family, folder: Path, conversations: Any, settings: Generation, **changes: Any) -> Live:
    skeleton = build_skeleton(family.recipe("linear"), family.parents, folder, chat_template=None)
    prompts = [(f"p{i}", ids) for i, ids in enumerate(tokenise(skeleton, conversations))]
    spec = EngineSpec("vllm", skeleton, family.folders, max_model_len=256, **changes)
    pool = Pool(spec, {"search": prompts, "validation": prompts[:1]}, settings, count=1)
    pool.start()
    return Live(pool, family, skeleton, prompts)


@pytest.fixture(scope="session")
def live_vllm() -> Callable[..., Live]:
    """Starts a pool with one vLLM engine: ``live_vllm(family, folder, conversations, settings, **spec)``; close it."""
    return start_live
