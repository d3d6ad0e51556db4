"""Three tiny random Llama models, prompts and a run config on them, for benchmarks that need no real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT = [
    "The river runs past the old mill and the quiet village below the hill.",
    "What is the capital of France? The capital of France is Paris.",
    "One two three four five six seven eight nine ten.",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_family(root: Path, *, layers: int = 3, hidden: int = 64) -> dict[str, str]:
    """Saves a base and two children that differ from it in every tensor; their folders by name.

    Heads have 32 dimensions, the fewest that vLLM's CPU build takes.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<s>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<|end|>", pad_token="<|pad|>", bos_token="<s>", chat_template=TEMPLATE
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.15,  # so that answers vary with the merge
    )
    folders = {}
    for seed, name in enumerate(("base", "one", "two")):
        torch.manual_seed(0)
        network = LlamaForCausalLM(config)
        torch.manual_seed(seed)
        if name != "base":
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.6 * parameter.std().nan_to_num(0.1))
        network.to(torch.bfloat16).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        folders[name] = str(root / name)
    return folders


def write_prompts(path: Path, *, per_split: int) -> Path:
    lines = [
        {"id": f"q{i}", "prompt": f"What is the capital of country {i}?", "reference": "river", "split": split}
        for i, split in enumerate(("search", "validation") * per_split)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def config_on(folders: dict[str, str], prompts: Path, **blocks: Any) -> dict[str, Any]:
    """A run config as plain data: every layer has weights of its own; ``blocks`` are laid over it."""
    return {
        "genome": {
            "models": [folders["one"], folders["two"]],
            "base_model": folders["base"],
            "merge_method": "task_arithmetic",
            "layer_granularity": 1,
        },
        "prompts": {"files": [str(prompts)]},
        "generation": {"preset": "greedy-short", "max_new_tokens": 8},
        "fitness": {"terms": [{"metric": "repetition", "weight": -1}, {"metric": "chrf"}]},
        **blocks,
    }
