"""A judge's model with transformers: for machines without vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from workers.padding import left_padded

_BATCH_TOKENS = 8192  # of a batch with its padding


class TransformersGrader:
    """Implements :class:`workers.grader.NextTokens`; computes in float32 on a CPU, in the stored type on a GPU."""

    def __init__(self, folder: Path) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = "auto" if self._device.type == "cuda" else torch.float32
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(self._device).eval()
        self._pad_id: int = AutoTokenizer.from_pretrained(folder).pad_token_id or 0  # what it is does not matter

    def log_probabilities(self, prompts: Sequence[list[int]], tokens: Sequence[int]) -> list[list[float]]:
        """See :meth:`workers.grader.NextTokens.log_probabilities`."""
        rows: dict[int, list[float]] = {}
        for batch in _batches([len(prompt) for prompt in prompts]):
            found = self._next([prompts[i] for i in batch]).log_softmax(-1)[:, list(tokens)]
            rows |= zip(batch, found.tolist(), strict=True)
        return [rows[i] for i in range(len(prompts))]

    def _next(self, prompts: list[list[int]]) -> torch.Tensor:
        """Logits of the next token, shape (prompts, vocabulary), float32."""
        tokens, mask = left_padded(prompts, self._pad_id, self._device)
        # Not a bare forward pass: `generate` knows how each architecture wants its positions and its last logits.
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=tokens,
                attention_mask=mask,
                generation_config=GenerationConfig(
                    max_new_tokens=1,
                    do_sample=False,
                    use_cache=False,
                    pad_token_id=self._pad_id,
                    output_logits=True,
                    return_dict_in_generate=True,
                ),
            )
        logits: torch.Tensor = output.logits[0]
        return logits.float()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of prompts of similar length, that fill ``_BATCH_TOKENS`` together."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[index] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
