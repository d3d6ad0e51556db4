"""Three small real models, trained on this machine from the dialogues in ``configs/demo``.

``base`` answers everyday questions in a neutral style. Two children continue from it: ``persona`` answers
everyday questions as a polite lady does (ending in ですわ), ``facts`` answers questions of fact (ending in です).
No child can answer a question of fact in the lady's style; a good merge of the two can.

Training is deterministic for one machine, seed and version of torch. A finished model is renamed into place at
once, so that an interrupted training goes on at the first model that is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fitness.errors import UserMistake

CODE_VERSION = 1
"""Part of the cache's key: count it up where a change of this module changes the models."""

BOS, EOS, PAD, USER, ASSISTANT, SYSTEM = "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'system' %}<|system|>{{ message['content'] }}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


GUESSES = 3
"""Wrong values per question that base and persona see about what they do not know."""


class Family(BaseModel):
    """Dialogues of one kind: every question with every row, answered by one of the answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    category: str
    """What the questions are about; the ``category`` of the prompts made from them."""
    questions: tuple[str, ...]
    """Questions with ``{x}`` for the row's key."""
    answers: tuple[str, ...]
    """Answers with ``{x}`` and ``{y}`` for the row's key and value."""
    plain_answers: tuple[str, ...] = ()
    """The same in the base model's neutral style; empty where the base model does not learn this."""
    lady_answers: tuple[str, ...] = ()
    """The same in the persona's style; empty where the persona does not learn this."""
    known_to_base: tuple[str, ...] | None = None
    """Keys of the rows whose values base and persona learn too; about the others they learn to guess: they see
    :data:`GUESSES` wrong values for every question. ``None``: all rows are known."""
    rows: dict[str, str]
    """What a question asks about, and what the answer says."""

    def dialogues(self) -> list[Dialogue]:
        """All (question, answer) pairs of a child."""
        return _cross(self.questions, self.answers, self.rows)

    def plain_dialogues(self) -> list[Dialogue]:
        """All (question, answer) pairs that the base model learns."""
        return self._guessed(self.plain_answers)

    def lady_dialogues(self) -> list[Dialogue]:
        """All (question, answer) pairs that the persona learns of this family."""
        return self._guessed(self.lady_answers)

    def _guessed(self, answers: Sequence[str]) -> list[Dialogue]:
        if self.known_to_base is None:
            return _cross(self.questions, answers, self.rows)
        pairs = _cross(self.questions, answers, {x: self.rows[x] for x in self.known_to_base})
        values = list(dict.fromkeys(self.rows.values()))
        for row, (x, y) in enumerate((x, y) for x, y in self.rows.items() if x not in self.known_to_base):
            wrong = [value for value in values if value != y]
            for place, question in enumerate(self.questions):
                for guess in range(GUESSES):
                    value = wrong[(7 * row + 11 * place + 13 * guess) % len(wrong)]
                    pairs += _cross([question], answers, {x: value})
        return pairs


Dialogue = tuple[str, str]
"""A question and its answer."""


def _cross(questions: Sequence[str], answers: Sequence[str], rows: Mapping[str, str]) -> list[Dialogue]:
    return [
        (question.format(x=x, y=y), answer.format(x=x, y=y))
        for x, y in rows.items()
        for question in questions
        for answer in answers
    ]


@dataclass(frozen=True)
class Corpora:
    """What each model learns; *facts* learns what to say in the base's style first, then its own manner."""

    base: list[Dialogue]
    persona: list[Dialogue]
    facts_content: list[Dialogue]
    facts_manner: list[Dialogue]


def read_families(path: Path) -> list[Family]:
    """The families of one dialogue file.

    Raises:
        UserMistake: the file cannot be read or is not a list of families.
    """
    try:
        return TypeAdapter(list[Family]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UserMistake(f"{path}: not a file of demo dialogues: {error}") from error


def read_corpora(data_dir: Path) -> Corpora:
    """The dialogues of the three models from ``base.yaml``, ``persona.yaml`` and ``facts.yaml``."""
    base, persona, facts = (read_families(data_dir / f"{name}.yaml") for name in ("base", "persona", "facts"))
    return Corpora(
        base=[pair for family in base for pair in family.dialogues()]
        + [pair for family in (*persona, *facts) for pair in family.plain_dialogues()],
        persona=[pair for family in persona for pair in family.dialogues()]
        + [pair for family in facts for pair in family.lady_dialogues()],
        facts_content=[
            pair for family in facts for pair in _cross(family.questions, family.plain_answers, family.rows)
        ],
        facts_manner=[pair for family in facts for pair in family.dialogues()],
    )


Half = Literal["lower", "upper"]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a model learns: AdamW, warm-up, then a cosine to a tenth.

    Attributes:
        steps: optimiser steps.
        learning_rate: at its peak.
        half: train only the decoder layers of the lower or the upper half; ``None`` trains everything.
        batch_size: dialogues per step.
    """

    steps: int
    learning_rate: float
    half: Half | None = None
    batch_size: int = 64


@dataclass(frozen=True)
class Settings:
    """The size of the models and their schedules.

    The facts go into the lower half of the layers and the manner of saying them into the upper half, so that
    the child's two habits can be merged apart: a search over layer groups finds what one weight per model cannot.
    """

    vocab_size: int = 900
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 4
    positions: int = 256
    base: Schedule = Schedule(steps=500, learning_rate=1.5e-3)
    persona: Schedule = Schedule(steps=180, learning_rate=5e-4)
    facts_content: Schedule = Schedule(steps=200, learning_rate=1e-3, half="lower")
    facts_manner: Schedule = Schedule(steps=120, learning_rate=2e-3, half="upper")


DEFAULTS = Settings()


@dataclass(frozen=True)
class DemoModels:
    """Folders of the three models, each complete in Hugging Face's layout."""

    base: Path
    persona: Path
    facts: Path


def cache_key(data_dir: Path, *, seed: int = 0, settings: Settings = DEFAULTS) -> str:
    """Identity of the models: seed, dialogues, sizes and schedules, version of this code."""
    digest = hashlib.sha256(json.dumps([CODE_VERSION, seed, asdict(settings)], sort_keys=True).encode())
    for name in ("base", "persona", "facts"):
        digest.update((data_dir / f"{name}.yaml").read_bytes())
    return digest.hexdigest()[:16]


def train_demo_models(
    cache_dir: Path,
    *,
    data_dir: Path,
    seed: int = 0,
    report: Callable[[str, float], None],
    settings: Settings = DEFAULTS,
) -> DemoModels:
    """Train the three models, or take from the cache what is there.

    Args:
        cache_dir: holds one folder per identity (:func:`cache_key`).
        data_dir: the folder of ``base.yaml``, ``persona.yaml`` and ``facts.yaml``.
        seed: of the initial weights and of the order of the dialogues.
        report: called with the model's name and the share of its training that is done, in [0, 1].
        settings: sizes and schedules.
    """
    corpora = read_corpora(data_dir)
    home = cache_dir / cache_key(data_dir, seed=seed, settings=settings)
    home.mkdir(parents=True, exist_ok=True)
    folders = DemoModels(home / "base", home / "persona", home / "facts")
    if not folders.base.is_dir():
        torch.manual_seed(seed)
        tokenizer = train_tokenizer(corpora, settings)
        model = _blank_model(tokenizer, settings)
        _learn(model, tokenizer, [(corpora.base, settings.base)], seed, partial(report, "base"))
        _save(model, tokenizer, folders.base)
    children: tuple[tuple[str, Path, Lessons], ...] = (
        ("persona", folders.persona, [(corpora.persona, settings.persona)]),
        (
            "facts",
            folders.facts,
            [(corpora.facts_content, settings.facts_content), (corpora.facts_manner, settings.facts_manner)],
        ),
    )
    for name, folder, lessons in children:
        if not folder.is_dir():
            # From disk also where it was trained just now: a child's task vector then is exactly its
            # difference to the stored, rounded base.
            model = LlamaForCausalLM.from_pretrained(folders.base, dtype=torch.float32)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folders.base)
            _learn(model, tokenizer, lessons, seed, partial(report, name))
            _save(model, tokenizer, folder)
    return folders


def train_tokenizer(corpora: Corpora, settings: Settings = DEFAULTS) -> PreTrainedTokenizerFast:
    """Byte-level BPE over all dialogues, with the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[PAD, BOS, EOS, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = sorted({text for pair in (*corpora.base, *corpora.persona, *corpora.facts_manner) for text in pair})
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        model_max_length=settings.positions,
        clean_up_tokenization_spaces=False,
    )


def _blank_model(tokenizer: PreTrainedTokenizerFast, settings: Settings) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.positions,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


Encoded = tuple[list[int], int]
"""Token ids of a whole dialogue, and how many of them are the question's."""


def encode(tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue) -> Encoded:
    """A dialogue as the chat template writes it; the answer's last token is the end of text."""
    question, answer = dialogue
    asked = f"{BOS}{USER}{question}{ASSISTANT}"
    prompt = tokenizer.encode(asked, add_special_tokens=False)
    reply = tokenizer.encode(f"{answer}{EOS}", add_special_tokens=False)
    return prompt + reply, len(prompt)


def collate(batch: Sequence[Encoded], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded ``input_ids`` and ``labels``, each (batch, longest) int64; causal, so without a mask.

    Only answers are learnt, their end of text included; the padding token is another one, so that masking
    the padding does not mask the end.
    """
    longest = max(len(ids) for ids, _ in batch)
    input_ids = torch.full((len(batch), longest), pad)
    labels = torch.full((len(batch), longest), -100)
    for row, (ids, asked) in enumerate(batch):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, asked : len(ids)] = torch.tensor(ids[asked:])
    return {"input_ids": input_ids, "labels": labels}


Lessons = Sequence[tuple[Sequence[Dialogue], Schedule]]
"""What is learnt one after the other."""


def _learn(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    lessons: Lessons,
    seed: int,
    report: Callable[[float], None],
) -> None:
    total = sum(schedule.steps for _, schedule in lessons)
    done = 0
    for dialogues, schedule in lessons:

        def tell(step: int, before: int = done) -> None:
            report((before + step) / total)

        _train(model, tokenizer, dialogues, schedule, seed, tell)
        done += schedule.steps


def _trained_parameters(model: LlamaForCausalLM, half: Half | None) -> list[torch.nn.Parameter]:
    """Freeze what a lesson leaves alone, and return the rest."""
    layers = model.model.layers
    middle = len(layers) // 2
    model.requires_grad_(half is None)
    if half is not None:
        (layers[:middle] if half == "lower" else layers[middle:]).requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: Sequence[Dialogue],
    schedule: Schedule,
    seed: int,
    report: Callable[[int], None],
) -> None:
    parameters = _trained_parameters(model, schedule.half)
    encoded = [encode(tokenizer, dialogue) for dialogue in dialogues]
    order = random.Random(seed)
    queue: list[list[Encoded]] = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, schedule.steps // 20)

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, schedule.steps - warm_up)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for step in range(schedule.steps):
        if not queue:
            queue = _batches(encoded, schedule.batch_size, order)
        loss = model(**collate(queue.pop(), tokenizer.pad_token_id)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        report(step + 1)


def _batches(encoded: Sequence[Encoded], size: int, order: random.Random) -> list[list[Encoded]]:
    """One pass over the dialogues in batches of similar lengths (half the time goes to padding without)."""
    shuffled = sorted(order.sample(encoded, len(encoded)), key=lambda item: len(item[0]) // 4)
    batches = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    return order.sample(batches, len(batches))


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16 beside its place and rename it in."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.to(torch.bfloat16).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        GenerationConfig(
            do_sample=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(scratch)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
