"""Which tokens end an answer."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from workers.errors import ModelError, last_line


def end_token_ids(skeleton: Path) -> frozenset[int]:
    """The end-of-text tokens that config, generation config and tokenizer name: a model may have several.

    Raises:
        ModelError: one of these files cannot be read.
    """
    path = skeleton / "generation_config.json"
    try:
        found: list[object] = [
            AutoTokenizer.from_pretrained(skeleton, trust_remote_code=False).eos_token_id,
            AutoConfig.from_pretrained(skeleton, trust_remote_code=False).eos_token_id,
        ]
        if path.exists():
            found.append(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))
    except Exception as error:  # whatever transformers raises on files it does not understand
        raise ModelError(
            f"{skeleton}: config.json, {path.name} or the tokenizer cannot be read ({last_line(error)}). "
            "Copy the model again."
        ) from error
    return frozenset(i for value in found for i in token_ids(value))


def token_ids(value: object) -> tuple[int, ...]:
    """What a file gives for a role: an id, several, or none."""
    return tuple(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
