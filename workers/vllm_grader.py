"""A judge's model with vLLM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workers.vllm_engine import set_environment


class VllmGrader:
    """Implements :class:`workers.grader.NextTokens`.

    Sets environment variables of this process that vLLM reads when it is imported, so give it a process of its own.
    """

    def __init__(self, folder: Path, *, max_model_len: int, gpu_memory_utilization: float, kv_cache_gib: int) -> None:
        on_gpu = torch.cuda.is_available()
        set_environment(kv_cache_gib, on_gpu=on_gpu)
        from vllm import LLM

        self._llm: Any = LLM(
            model=str(folder),
            dtype="auto" if on_gpu else "float32",
            max_model_len=max_model_len,
            distributed_executor_backend="uni",
            gpu_memory_utilization=gpu_memory_utilization,
            enforce_eager=True,  # graphs speed up decoding, and here nothing is decoded
            worker_extension_cls="workers.vllm_extension.MergeExtension",  # clears the cache after NaN
        )

    def log_probabilities(self, prompts: Sequence[list[int]], tokens: Sequence[int]) -> list[list[float]]:
        """See :meth:`workers.grader.NextTokens.log_probabilities`."""
        from vllm import SamplingParams, TokensPrompt

        settings = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=list(tokens), detokenize=False)
        requests = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        outputs = self._llm.generate(requests, settings, use_tqdm=False)
        found = [output.outputs[0].logprobs[0] for output in outputs]
        rows = [[float(one[token].logprob) for token in tokens] for one in found]
        if any(math.isnan(value) for row in rows for value in row):
            self._llm.collective_rpc("evolve_clear_cache")
            self._llm.reset_prefix_cache()
        return rows
