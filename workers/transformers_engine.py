"""A live transformers model whose weights are overwritten in place: for machines without vLLM.

Prompts are answered in left-padded batches of similar length. Greedy answers then differ from those of a batch of one
only where two tokens tie within floating-point noise.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.initialization import no_init_weights

from fitness.generation import Generation
from fitness.responses import Finish, Response
from workers.ends import end_token_ids
from workers.engine import EngineSpec, check_generation
from workers.errors import CandidateFailed, EngineSetupError
from workers.merge import Merger
from workers.models import Parent, read_architecture
from workers.padding import left_padded
from workers.recipe import Recipe

_BATCH = 32


class TransformersEngine:
    """Implements :class:`workers.engine.Engine` with transformers."""

    def __init__(self, spec: EngineSpec) -> None:
        config = AutoConfig.from_pretrained(spec.skeleton)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = spec.dtype
        if dtype == "auto":
            dtype = "float32" if self._device.type == "cpu" else "bfloat16"
            if self._device.type != "cpu" and config.dtype is not None:
                dtype = str(config.dtype).removeprefix("torch.")  # type: ignore[assignment]
        with no_init_weights():
            self._model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        self._model.tie_weights()  # suppressed together with the initialisation
        self._model.to(self._device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(spec.skeleton)
        self._end_ids = sorted(end_token_ids(spec.skeleton))
        pad = self._tokenizer.pad_token_id
        self._pad_id: int = pad if pad is not None else (self._end_ids[0] if self._end_ids else 0)
        self._merger = Merger(spec.folders, tokenizer=spec.skeleton)
        self._max_model_len = spec.max_model_len
        self._ready = False
        self._check_names(spec)

    def swap(self, recipe: Recipe) -> float:
        """See :meth:`workers.engine.Engine.swap`. Never fatal: the next swap overwrites every tensor."""
        started = time.perf_counter()
        self._ready = False
        targets = self._model.state_dict()
        written: set[int] = set()
        with torch.no_grad():
            for name, tensor in self._merger.tensors(recipe):
                target = targets.get(name)
                if target is None:
                    raise CandidateFailed("merge", f"tensor {name}: the model has none of that name")
                # A head that is tied to the embedding and stored all the same: the embedding counts.
                if target.data_ptr() in written:
                    continue
                if target.shape != tensor.shape:
                    shapes = f"{list(tensor.shape)}, the model's is {list(target.shape)}"
                    raise CandidateFailed("merge", f"tensor {name}: the merge has shape {shapes}")
                target.copy_(tensor)
                written.add(target.data_ptr())
        missing = [name for name, target in targets.items() if target.data_ptr() not in written]
        if missing:
            raise CandidateFailed("merge", f"tensor {missing[0]}: the merge does not give it")
        self._ready = True
        return time.perf_counter() - started

    def generate(
        self, prompts: Sequence[tuple[str, list[int]]], settings: Generation, seeds: Sequence[int]
    ) -> tuple[Response, ...]:
        """See :meth:`workers.engine.Engine.generate`.

        transformers has one random generator for a batch. Sampling here is the Gumbel-max trick instead (adding
        Gumbel noise to the log-probabilities and taking the largest samples from them exactly; Gumbel 1954), with a
        generator per prompt, so that a prompt's answer does not depend on the others in its batch.
        """
        if not self._ready:
            raise CandidateFailed("generate", "no merge is loaded in this engine")
        check_generation("transformers", settings)
        longest = max((len(ids) for _, ids in prompts), default=0)
        if longest + settings.max_new_tokens > self._max_model_len:
            raise CandidateFailed(
                "generate",
                f"prompt of {longest} tokens and {settings.max_new_tokens} new ones exceed {self._max_model_len}",
            )
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][1]))
        responses: dict[int, Response] = {}
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            rows = self._answer([prompts[i][1] for i in batch], settings, [seeds[i] for i in batch])
            for i, row in zip(batch, rows, strict=True):
                responses[i] = self._response(prompts[i][0], row, settings)
        return tuple(responses[i] for i in range(len(prompts)))

    def close(self) -> None:
        """Frees the model."""
        self._model = None
        self._ready = False
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _answer(self, prompts: list[list[int]], settings: Generation, seeds: list[int]) -> list[list[int]]:
        tokens, mask = left_padded(prompts, self._pad_id, self._device)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=tokens,
                attention_mask=mask,
                generation_config=GenerationConfig(
                    max_new_tokens=settings.max_new_tokens,
                    do_sample=False,
                    num_beams=settings.num_beams,
                    repetition_penalty=settings.repetition_penalty,
                    stop_strings=list(settings.stop) or None,
                    eos_token_id=self._end_ids or None,
                    pad_token_id=self._pad_id,
                ),
                tokenizer=self._tokenizer,
                logits_processor=_processors(settings, seeds),
            )
        rows: list[list[int]] = output[:, tokens.shape[1] :].tolist()
        return rows

    def _response(self, prompt_id: str, tokens: list[int], settings: Generation) -> Response:
        end = next((i for i, token in enumerate(tokens) if token in self._end_ids), None)
        finish: Finish = "length" if end is None else "stop"
        if end is not None:
            tokens = tokens[: end + 1]
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        places = [place for stop in settings.stop if (place := text.find(stop)) >= 0]
        if places:
            text, finish = text[: min(places)], "stop"
            while tokens and tokens[-1] == self._pad_id:  # what fills a row that ended before the others
                tokens.pop()
        return Response(prompt_id, text, len(tokens), finish)

    def _check_names(self, spec: EngineSpec) -> None:
        """Some checkpoints (mixtures of experts) are renamed by transformers while loading: not in place."""
        name, folder = next(iter(spec.folders.items()))
        architecture = read_architecture(Parent(name, folder, lora=False))
        stored = {*architecture.pre, *architecture.post}.union(*architecture.layers)
        unknown = sorted(stored - self._model.state_dict().keys())
        if unknown:
            raise EngineSetupError(
                f"transformers keeps the tensor {unknown[0]!r} of model {name!r} under another name, so that it "
                "cannot be swapped in place. Use workers.engine: vllm for this architecture."
            )


class _GumbelNoise(LogitsProcessor):
    """Adds noise so that the largest score is a sample from the softmax of the scores."""

    def __init__(self, seeds: list[int]) -> None:
        # On the CPU, so that a seed means the same on every device.
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        noise = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=g) for g in self._generators])
        return scores - noise.to(scores.device).log()


class _FiniteLogits(LogitsProcessor):
    """Gives the candidate up where a position has NaN, infinity, or no possible token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # NaN and infinity are carried into the largest score; a single -inf (a token that is ruled out) is not.
        if not torch.isfinite(scores.amax(dim=-1)).all():
            raise CandidateFailed(
                "generate", f"the model's logits are NaN or infinite at position {input_ids.shape[1]}"
            )
        return scores


def _processors(settings: Generation, seeds: list[int]) -> LogitsProcessorList:
    processors = LogitsProcessorList([_FiniteLogits()])
    if settings.temperature == 0:
        return processors
    processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k > 0:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    processors.append(_GumbelNoise(seeds))
    return processors
