"""A live vLLM engine whose weights are swapped in place, through vLLM's public interfaces only.

Parts: an ``LLM`` that starts on the skeleton with dummy weights; ``workers.vllm_extension`` in its workers, which
merges and reloads; and after every swap a reset of the prefix cache, because attention states of the old weights
would silently change the answers of the new ones.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from fitness.generation import Generation
from fitness.responses import Response
from workers.ends import end_token_ids
from workers.engine import EngineSpec, check_generation
from workers.errors import CandidateFailed
from workers.recipe import Recipe

_EXTENSION = "workers.vllm_extension.MergeExtension"


class VllmEngine:
    """Implements :class:`workers.engine.Engine` with vLLM.

    Sets environment variables of this process that vLLM reads when it is imported, so give it a process of its own.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._on_gpu = torch.cuda.is_available()
        set_environment(spec.kv_cache_gib, on_gpu=self._on_gpu)
        from vllm import LLM

        self._end_ids = end_token_ids(spec.skeleton)
        self._llm: Any = LLM(
            model=str(spec.skeleton),
            load_format="dummy",
            worker_extension_cls=_EXTENSION,
            dtype=_dtype(spec, on_gpu=self._on_gpu),
            max_model_len=spec.max_model_len,
            seed=spec.seed,
            tensor_parallel_size=spec.tensor_parallel_size,
            # Inside a Ray placement group vLLM would otherwise start Ray actors of its own.
            distributed_executor_backend="mp" if spec.tensor_parallel_size > 1 else "uni",
            gpu_memory_utilization=spec.gpu_memory_utilization,
            enforce_eager=not self._on_gpu if spec.enforce_eager is None else spec.enforce_eager,
        )
        folders = {name: str(folder) for name, folder in spec.folders.items()}
        self._llm.collective_rpc("evolve_open", args=(folders, str(spec.skeleton)))
        self._ready = False

    def swap(self, recipe: Recipe) -> float:
        """See :meth:`workers.engine.Engine.swap`."""
        started = time.perf_counter()
        self._ready = False
        outcomes = self._llm.collective_rpc("evolve_merge", args=(recipe.to_dict(),))
        cache_reset = self._llm.reset_prefix_cache()
        failures = [outcome for outcome in outcomes if outcome is not None]
        if failures:
            fatal = any(failure["fatal"] for failure in failures)
            raise CandidateFailed(failures[0]["stage"], failures[0]["reason"], fatal=fatal)
        if not cache_reset:
            raise CandidateFailed(
                "merge", "vLLM did not reset its prefix cache; answers would mix two models", fatal=True
            )
        self._ready = True
        return time.perf_counter() - started

    def generate(
        self, prompts: Sequence[tuple[str, list[int]]], settings: Generation, seeds: Sequence[int]
    ) -> tuple[Response, ...]:
        """See :meth:`workers.engine.Engine.generate`."""
        if not self._ready:
            raise CandidateFailed("generate", "no merge is loaded in this engine")
        check_generation("vllm", settings)
        if settings.num_beams > 1:
            return self._beam_search(prompts, settings)
        from vllm import SamplingParams, TokensPrompt

        parameters = [
            SamplingParams(
                max_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                repetition_penalty=settings.repetition_penalty,
                stop=list(settings.stop) or None,
                stop_token_ids=sorted(self._end_ids),
                seed=seed if settings.temperature > 0 else None,
                logprobs=0,  # that of the chosen token, which is not finite where the logits are not
            )
            for seed in seeds
        ]
        requests = [TokensPrompt(prompt_token_ids=ids) for _, ids in prompts]
        outputs = self._llm.generate(requests, parameters, use_tqdm=False)
        responses = []
        for (prompt_id, _), output in zip(prompts, outputs, strict=True):
            answer = output.outputs[0]
            if answer.finish_reason not in ("stop", "length"):
                raise CandidateFailed("generate", f"vLLM ended prompt {prompt_id} with {answer.finish_reason!r}")
            self._refuse_nan(prompt_id, answer.cumulative_logprob)
            responses.append(Response(prompt_id, answer.text, len(answer.token_ids), answer.finish_reason))
        return tuple(responses)

    def close(self) -> None:
        """Frees the model and ends the processes of the other ranks."""
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        self._ready = False
        gc.collect()
        cleanup_dist_env_and_memory()

    def _beam_search(self, prompts: Sequence[tuple[str, list[int]]], settings: Generation) -> tuple[Response, ...]:
        from vllm import TokensPrompt
        from vllm.sampling_params import BeamSearchParams

        parameters = BeamSearchParams(beam_width=settings.num_beams, max_tokens=settings.max_new_tokens)
        requests = [TokensPrompt(prompt_token_ids=ids) for _, ids in prompts]
        outputs = self._llm.beam_search(requests, parameters)
        tokenizer = self._llm.get_tokenizer()
        responses = []
        for (prompt_id, ids), output in zip(prompts, outputs, strict=True):
            self._refuse_nan(prompt_id, *(sequence.cum_logprob for sequence in output.sequences))
            tokens = list(output.sequences[0].tokens[len(ids) :])
            # vLLM's beams end at the tokenizer's end token only; models may have several.
            end = next((i for i, token in enumerate(tokens) if token in self._end_ids), None)
            tokens = tokens if end is None else tokens[: end + 1]
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            responses.append(Response(prompt_id, text, len(tokens), "length" if end is None else "stop"))
        return tuple(responses)

    def _refuse_nan(self, prompt_id: str, *logprobs: float | None) -> None:
        if all(logprob is not None and math.isfinite(logprob) for logprob in logprobs):
            return
        self._llm.collective_rpc("evolve_clear_cache")
        cleared = self._llm.reset_prefix_cache()
        reason = f"the model's logits are NaN or infinite (prompt {prompt_id})"
        raise CandidateFailed("generate", reason, fatal=not cleared)


def set_environment(kv_cache_gib: int, *, on_gpu: bool) -> None:
    """Environment variables that vLLM reads when it is imported; those that are set already stay.

    Args:
        kv_cache_gib: attention cache on a CPU, in GiB.
        on_gpu: whether vLLM will run on one.
    """
    defaults = {
        # The engine's core in this process: collective_rpc without a second serialisation, one process to kill.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if not on_gpu:
        # vLLM binds its threads to the first cores by default, so that two engines would share them.
        defaults |= {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _dtype(spec: EngineSpec, *, on_gpu: bool) -> str:
    if spec.dtype == "auto" and not on_gpu:
        return "float32"  # about five times faster than bfloat16 on a CPU without AMX
    return spec.dtype
