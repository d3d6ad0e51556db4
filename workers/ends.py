"""Which tokens end an answer."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer


def end_token_ids(skeleton: Path) -> frozenset[int]:
    """The end-of-text tokens that config, generation config and tokenizer name: a model may have several."""
    found: list[object] = [
        AutoTokenizer.from_pretrained(skeleton).eos_token_id,
        AutoConfig.from_pretrained(skeleton).eos_token_id,
    ]
    path = skeleton / "generation_config.json"
    if path.exists():
        found.append(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))
    ids: set[int] = set()
    for value in found:
        ids.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
    return frozenset(ids)
