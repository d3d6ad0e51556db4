"""Prompts of different lengths as one batch for transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts side by side, so that all of them end in the last column.

    Args:
        prompts: token ids, at least one prompt.
        pad_id: what fills the rows of the shorter ones; it is not attended to.
        device: where the batch is made.

    Returns:
        Token ids and attention mask, both int64 of shape (prompts, longest).
    """
    width = max(len(ids) for ids in prompts)
    tokens = torch.full((len(prompts), width), pad_id, device=device)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :] = torch.tensor(ids, device=device)
        mask[row, width - len(ids) :] = 1
    return tokens, mask
