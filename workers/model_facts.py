"""What a model folder says about itself, read without its weights: configuration, tokenizer, headers, card.

A file that is missing or broken becomes a finding; the rest is read nevertheless. Nothing of the folder is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load
from transformers import AutoConfig

from fitness.findings import Finding
from workers.checkpoint import INDEX_FILE, SINGLE_FILE, TOKENIZER_FILES, Checkpoint, Tensor, pickles
from workers.errors import ModelError, last_line
from workers.tokenizer_facts import TokenizerFacts, read_tokenizer

_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")


@dataclass(frozen=True)
class ModelFacts:
    """A model folder without its weights.

    Attributes:
        name: how the user calls it.
        folder: where it lies.
        config: ``config.json`` as written; empty where unreadable.
        settings: the language model's part of it with transformers' defaults filled in and old spellings brought
            up to date (``rope_parameters``); as written where transformers does not know the model.
        native: whether transformers knows the model without code from the folder.
        generation: ``generation_config.json``; ``None`` where there is none or it is unreadable.
        tokenizer: ``None`` where there is none or it is unreadable.
        tensors: stored tensors by name, from the headers; empty where unreadable.
        pickles: weight files in pickle format.
        remote_code: Python references (``auto_map``) by which the folder asks to run code of its own.
        card: the YAML front matter of README.md; empty where there is none.
        problems: what could not be read.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    native: bool
    generation: Mapping[str, Any] | None
    tokenizer: TokenizerFacts | None
    tensors: Mapping[str, Tensor]
    pickles: tuple[str, ...]
    remote_code: tuple[str, ...]
    card: Mapping[str, Any]
    problems: tuple[Finding, ...]

    @property
    def architectures(self) -> tuple[str, ...]:
        """Class names in config.json."""
        names = self.config.get("architectures") or ()
        return tuple(map(str, names)) if isinstance(names, list | tuple) else (str(names),)

    @property
    def tied(self) -> bool:
        """Whether input and output embeddings are one tensor."""
        return bool(self.settings.get("tie_word_embeddings", False))

    @property
    def rope(self) -> dict[str, Any]:
        """Rotary positions: theta, type and whatever scales them; empty for models without."""
        rope = self.settings.get("rope_parameters") or self.settings.get("rope_scaling") or {}
        # `type` is the old spelling, which transformers keeps beside `rope_type`.
        return {key: value for key, value in rope.items() if key != "type"}

    @cached_property
    def rows(self) -> int | None:
        """Rows of the token embedding as stored, else as configured; ``None`` where nobody says."""
        stored = [tensor.shape[0] for name, tensor in self.tensors.items() if _EMBEDDING.search(name)]
        rows = stored[0] if stored else self.settings.get("vocab_size")
        return rows if isinstance(rows, int) else None

    @cached_property
    def homeless(self) -> tuple[str, ...]:
        """Tokens without a row in the embedding; without the special ones that transformers adds of itself."""
        if self.tokenizer is None or self.rows is None:
            return ()
        found = {token for token, i in self.tokenizer.vocabulary.items() if i >= self.rows}
        invented = {token for token, _ in self.tokenizer.roles.values() if token in found}
        if invented:
            paths = [self.folder / file for file in TOKENIZER_FILES if file.endswith(".json")]
            text = "".join(path.read_text(encoding="utf-8") for path in paths if path.exists())
            found -= {token for token in invented if token not in text and json.dumps(token)[1:-1] not in text}
        return tuple(sorted(found))

    @property
    def licences(self) -> tuple[str, ...]:
        """Licence ids of the card in lower case; a card that says ``other`` gives its ``license_name``."""
        named = [text.lower() for text in _texts(self.card.get("license"))]
        other = [text.lower() for text in _texts(self.card.get("license_name"))]
        return tuple(other if named == ["other"] and other else named)

    @property
    def base_models(self) -> tuple[str, ...]:
        """The models that the card names as its base."""
        return _texts(self.card.get("base_model"))


def read_facts(name: str, folder: Path) -> ModelFacts:
    """Reads a model folder.

    Args:
        name: how the user calls the model.
        folder: a Hugging Face model folder; may lack weights (a run's skeleton).

    Returns:
        What could be read; ``problems`` says what could not.
    """
    problems: list[Finding] = []
    config = _config(name, folder, problems)
    tokenizer_config = _json(name, folder / "tokenizer_config.json", problems) or {}
    remote = _remote_code(config, tokenizer_config)
    settings = _settings(name, folder, problems, custom=bool(remote)) if config else None
    tokenizer = _tokenizer(name, folder, problems) if not problems else None
    generation = _json(name, folder / "generation_config.json", problems)
    return ModelFacts(
        name=name,
        folder=folder,
        config=config,
        settings=settings or config,
        native=settings is not None,
        generation=generation,
        tokenizer=tokenizer,
        tensors=_tensors(name, folder, problems),
        pickles=pickles(folder),
        remote_code=remote,
        card=_card(folder, problems),
        problems=tuple(problems),
    )


def _problem(name: str, message: str, remedy: str) -> Finding:
    return Finding("files-readable", "error", name, message, remedy)


def _model_problem(name: str, error: ModelError) -> Finding:
    """A ModelError closes with its remedy, a sentence of its own."""
    message, _, remedy = str(error).rpartition(". ")
    return _problem(name, message + ".", remedy) if message else _problem(name, remedy, "Copy the model again.")


def _config(name: str, folder: Path, problems: list[Finding]) -> dict[str, Any]:
    try:
        config = Checkpoint(name, folder).config
    except ModelError as error:
        problems.append(_model_problem(name, error))
        return {}
    if isinstance(config, dict):
        return config
    problems.append(_problem(name, f"{folder / 'config.json'} is no JSON object.", "Copy the model again."))
    return {}


def _json(name: str, path: Path, problems: list[Finding]) -> dict[str, Any] | None:
    """A file that may be missing."""
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(_problem(name, f"{path} is not readable as JSON ({error}).", "Copy the model again."))
        return None
    if isinstance(data, dict):
        return data
    problems.append(_problem(name, f"{path} is no JSON object.", "Copy the model again."))
    return None


def _remote_code(*configs: Mapping[str, Any]) -> tuple[str, ...]:
    maps = [config.get("auto_map") for config in configs]
    return tuple(sorted({str(value) for found in maps if isinstance(found, dict) for value in found.values()}))


def _settings(name: str, folder: Path, problems: list[Finding], *, custom: bool) -> dict[str, Any] | None:
    try:
        # Never None: transformers would ask at the terminal.
        known = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever transformers raises on a configuration it does not understand
        if not custom:  # code that is refused is a finding of its own
            message = f"transformers cannot make sense of {folder / 'config.json'} ({last_line(error)})."
            problems.append(_problem(name, message, "Correct the file, or use a transformers that knows this model."))
        return None
    settings: dict[str, Any] = known.get_text_config().to_dict()
    return settings


def _tokenizer(name: str, folder: Path, problems: list[Finding]) -> TokenizerFacts | None:
    try:
        return read_tokenizer(folder)
    except ModelError as error:
        problems.append(_model_problem(name, error))
        return None


def _tensors(name: str, folder: Path, problems: list[Finding]) -> dict[str, Tensor]:
    if not (folder / SINGLE_FILE).exists() and not (folder / INDEX_FILE).exists():
        if not pickles(folder):  # those are a finding of their own
            message = f"{folder} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}."
            problems.append(_problem(name, message, "Fetch the model again, with its weights."))
        return {}
    try:
        return Checkpoint(name, folder).tensors
    except ModelError as error:
        problems.append(_model_problem(name, error))
    except (TypeError, AttributeError) as error:
        problems.append(_problem(name, f"{folder / INDEX_FILE} is damaged ({error}).", "Fetch the model again."))
    return {}


def _card(folder: Path, problems: list[Finding]) -> dict[str, Any]:
    path = folder / "README.md"
    try:
        return dict(metadata_load(path) or {}) if path.exists() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        message = f"the front matter of the model card is no YAML that can be read ({last_line(error)})."
        problems.append(Finding("files-readable", "note", str(path), message))
        return {}


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(str(one) for one in values if one)
