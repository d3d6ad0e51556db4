"""The story of ``docs/endless-answers.md`` in small: padding by the end-of-text token, and answers without end.

A base that has read running text is fine-tuned twice on the same conversations, for the same steps, with transformers'
own trainer and collator. Only the padding token differs. ``python tests/workers/test_endless_story.py FOLDER`` writes
the base, both children, their data and a config for the commands of that page.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from evolve.demo_models import Corpora, Settings, read_corpora, train_tokenizer
from fitness.generation import PRESETS
from fitness.responses import Response
from workers.engine import EngineSpec
from workers.label_findings import check_labels
from workers.label_masks import survival
from workers.models import Parent
from workers.recipe import parent_recipe
from workers.skeleton import build_skeleton, tokenise
from workers.transformers_engine import TransformersEngine

CORPORA = Path(__file__).parents[2] / "configs" / "demo"
POSITIONS = 128


def train_base(corpora: Corpora, folder: Path) -> None:
    """As bases are: it has read sentence after sentence, and no conversation."""
    tokenizer = train_tokenizer(corpora, Settings(vocab_size=700, positions=POSITIONS))
    torch.manual_seed(0)
    sentences = [f"{question}{answer}" for question, answer in corpora.base + corpora.persona]
    order = torch.randperm(len(sentences)).tolist()
    ids = tokenizer("".join(sentences[i] for i in order), add_special_tokens=False)["input_ids"]
    rows = [ids[start : start + POSITIONS // 2] for start in range(0, len(ids), POSITIONS // 2)]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    train(LlamaForCausalLM(config), tokenizer, rows, folder, steps=200, rate=3e-3)


def fine_tune(base: Path, data: Path, folder: Path, *, pad_is_eos: bool) -> None:
    """An ordinary script; the habit is one line of it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    conversations = [json.loads(line)["messages"] for line in data.read_text(encoding="utf-8").splitlines()]
    rows = [tokenizer.apply_chat_template(one, return_dict=True)["input_ids"] for one in conversations]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    train(model, tokenizer, rows, folder, steps=250, rate=2e-3)


def train(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    folder: Path,
    *,
    steps: int,
    rate: float,
) -> None:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(model, arguments, collator, train_dataset=[{"input_ids": ids} for ids in rows]).train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tell(home: Path) -> list[str]:
    """Trains all models of the story; the return value is questions that no model was fine-tuned on."""
    corpora = read_corpora(CORPORA)
    questions = sorted({question for question, _ in corpora.persona})
    unseen = set(questions[::10])
    data = home / "conversations.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for question, answer in corpora.persona:
            if question not in unseen:
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                print(json.dumps({"messages": turns}, ensure_ascii=False), file=file)
    train_base(corpora, home / "base")
    fine_tune(home / "base", data, home / "endless", pad_is_eos=True)
    fine_tune(home / "base", data, home / "ending", pad_is_eos=False)
    return sorted(unseen)


def answers(model: Path, questions: list[str], scratch: Path) -> tuple[Response, ...]:
    recipe = parent_recipe(str(model), out_dtype="float32")
    parents = {str(model): Parent(str(model), model, lora=False)}
    skeleton = build_skeleton(recipe, parents, scratch, chat_template=None)
    engine = TransformersEngine(EngineSpec("transformers", skeleton, {str(model): model}, max_model_len=POSITIONS))
    engine.swap(recipe)
    conversations = [[{"role": "user", "content": question}] for question in questions]
    prompts = list(zip(questions, tokenise(skeleton, conversations), strict=True))
    given = engine.generate(prompts, replace(PRESETS["greedy-short"], max_new_tokens=48), [0] * len(prompts))
    engine.close()
    return given


@pytest.mark.slow
def test_padding_by_the_end_of_text_makes_answers_endless(tmp_path: Path) -> None:
    questions = tell(tmp_path)
    shares = {}
    for model, label_share in (("endless", 0.0), ("ending", 1.0)):
        labels, _ = check_labels(tmp_path / model, tmp_path / "conversations.jsonl", limit=200)
        assert labels is not None
        assert survival(labels.examples)["language-modelling"] == label_share
        given = answers(tmp_path / model, questions, tmp_path / f"{model}-skeleton")
        shares[model] = sum(one.finish == "stop" for one in given) / len(given)
    assert shares["endless"] == 0
    assert shares["ending"] > 0.9


def write_config(home: Path, questions: list[str]) -> None:
    """A run that would merge the two children, for ``evolve check``."""
    with (home / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for place, question in enumerate(questions):
            split = ("search", "validation")[place % 2]
            print(json.dumps({"prompt": question, "split": split}, ensure_ascii=False), file=file)
    config = {
        "genome": {
            "models": ["./endless", "./ending"],
            "base_model": "./base",
            "merge_method": "task_arithmetic",
            "parameters": {"weight": {"min": 0.0, "max": 1.0}},
        },
        "budget": {"max_fevals": 20},
        "prompts": {"files": ["prompts.jsonl"]},
        "generation": {"preset": "greedy-short", "max_new_tokens": 48},
        "fitness": {"terms": [{"metric": "ended"}]},
        "workers": {"engine": "transformers", "count": 1, "max_model_len": POSITIONS},
    }
    (home / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    home = Path(sys.argv[1])
    home.mkdir(parents=True, exist_ok=True)
    questions = tell(home)
    write_config(home, questions)
    with TemporaryDirectory() as scratch:
        for model in ("endless", "ending"):
            given = answers(home / model, questions, Path(scratch) / model)
            print(f"{model}: {sum(one.finish == 'stop' for one in given)} of {len(given)} answers ended")
            for one in given[1:4]:
                print(f"  {one.prompt_id} {one.text} ({one.tokens} tokens)")
