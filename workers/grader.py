"""A local judge's model from both sides: a process of its own that holds it, and its handle in the driver.

The process answers one question only: after this conversation, how probable is each of these grades as the next
token? What the grades mean is the business of :mod:`fitness.local_judge`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from transformers import AutoConfig

from fitness.errors import JudgeStopped
from fitness.judge_protocol import Messages
from fitness.scores import Unscored
from workers.cluster import connect, worker_environment
from workers.engine import EngineName, resolve_engine
from workers.errors import EngineSetupError, last_line
from workers.grade_template import GradeTemplate

_LONGEST_BY_DEFAULT = 8192  # tokens; the attention cache of a long-context model's own limit would not fit
_CLOSE_SECONDS = 10.0


class NextTokens(Protocol):
    """A loaded model."""

    def log_probabilities(self, prompts: Sequence[list[int]], tokens: Sequence[int]) -> list[list[float]]:
        """Natural log-probability of each of the tokens after each prompt, shape (prompts, tokens).

        Computed from the model's own distribution over its whole vocabulary; NaN where the logits are.
        """
        ...


@dataclass(frozen=True)
class GraderSpec:
    """What a grader's process needs to start.

    Attributes:
        folder: Hugging Face folder of a model with a chat template.
        engine: which library runs it.
        gpu_memory_utilization: share of its GPU's memory for vLLM.
        kv_cache_gib: vLLM's attention cache on a CPU, in GiB.
        max_model_len: longest prompt plus the grade, in tokens; ``None``: the model's limit, at most 8192.
    """

    folder: Path
    engine: EngineName
    gpu_memory_utilization: float
    kv_cache_gib: int
    max_model_len: int | None


class GraderProcess:
    """What runs in the actor's process. Refusals are returned, not raised: values survive pickling unchanged."""

    def __init__(self, spec: GraderSpec) -> None:
        self._spec = spec
        self._template: GradeTemplate
        self._model: NextTokens
        self._max_model_len = 0

    def start(self) -> str | None:
        """Loads the model; returns why it could not, or ``None``."""
        spec = self._spec
        if not (spec.folder / "config.json").is_file():
            return f"{spec.folder} is not a Hugging Face model folder: it has no config.json (the judge's `folder`)."
        try:
            self._template = GradeTemplate(spec.folder)
            self._max_model_len = self._longest()
            self._model = self._load()
        except EngineSetupError as error:
            return str(error)
        except Exception as error:  # whatever the libraries raise: out of memory, unknown model, ...
            return (
                f"the {spec.engine} engine did not start with the judge's model {spec.folder}: {last_line(error)} "
                "(what it may use: gpu_memory_utilization, kv_cache_gib, max_model_len)"
            )
        return None

    def grade(
        self, conversations: Sequence[Messages], grades: Sequence[str]
    ) -> list[list[float] | Unscored] | EngineSetupError:
        """See :meth:`ActorGrader.grade`; returns the error that it raises."""
        try:
            tokens = self._template.grade_tokens(grades)
        except EngineSetupError as error:
            return error
        prompts = [self._template.tokenise(conversation) for conversation in conversations]
        fitting = [prompt for prompt in prompts if len(prompt) < self._max_model_len]
        rows = iter(self._model.log_probabilities(fitting, tokens) if fitting else [])
        return [
            self._judge(next(rows)) if len(prompt) < self._max_model_len else self._too_long(prompt)
            for prompt in prompts
        ]

    def _judge(self, log_probabilities: list[float]) -> list[float] | Unscored:
        # softmax over the log-probabilities of some tokens renormalises them, without underflow
        shares = torch.tensor(log_probabilities, dtype=torch.float64).softmax(0)
        if not shares.isfinite().all():
            return Unscored(f"the logits of the local judge {self._spec.folder.name} are NaN or infinite")
        return list(shares.tolist())

    def _too_long(self, prompt: list[int]) -> Unscored:
        return Unscored(
            f"the question to the local judge {self._spec.folder.name} has {len(prompt)} tokens, and it takes at most "
            f"{self._max_model_len - 1} (max_model_len {self._max_model_len}, one of them for the grade)"
        )

    def _longest(self) -> int:
        config = AutoConfig.from_pretrained(self._spec.folder).get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        asked = self._spec.max_model_len
        if asked is not None and limit is not None and asked > limit:
            raise EngineSetupError(
                f"the judge's max_model_len is {asked}, and its model {self._spec.folder} has {limit} positions. "
                "Lower it, or leave it empty."
            )
        return asked or min(_LONGEST_BY_DEFAULT, limit or _LONGEST_BY_DEFAULT)

    def _load(self) -> NextTokens:
        spec = self._spec
        if spec.engine == "transformers":
            from workers.transformers_grader import TransformersGrader

            return TransformersGrader(spec.folder)
        from workers.vllm_grader import VllmGrader

        return VllmGrader(
            spec.folder,
            max_model_len=self._max_model_len,
            gpu_memory_utilization=spec.gpu_memory_utilization,
            kv_cache_gib=spec.kv_cache_gib,
        )


class ActorGrader:
    """The process as the driver sees it; implements :class:`fitness.local_judge.Grader`."""

    def __init__(self, actor: Any, name: str, *, timeout_seconds: float, owns_ray: bool) -> None:
        self._actor = actor
        self._timeout_seconds = timeout_seconds
        self._name = name
        self._owns_ray = owns_ray
        self._closed = False
        self._asking = threading.Lock()

    def grade(self, conversations: Sequence[Messages], grades: Sequence[str]) -> list[list[float] | Unscored]:
        """Asks for grades, and waits for them. One call at a time; others wait.

        Args:
            conversations: each a list of ``{"role": ..., "content": ...}``.
            grades: texts with which an answer may begin, each one token of the model.

        Returns:
            Per conversation the probability of each grade, float64, normalised over the grades; ``Unscored`` where a
            conversation is too long or its logits are NaN.

        Raises:
            EngineSetupError: a grade is not one token.
            JudgeStopped: the process died, was closed, or did not answer in time.
        """
        with self._asking:
            if self._closed or not ray.is_initialized():
                raise JudgeStopped(f"the local judge {self._name} is closed")
            try:
                outcome = ray.get(
                    self._actor.grade.remote(list(conversations), list(grades)), timeout=self._timeout_seconds
                )
            except GetTimeoutError as error:
                raise JudgeStopped(
                    f"the local judge {self._name} did not answer within {self._timeout_seconds:g} s (the judge's "
                    "timeout_seconds); lower its batch, or raise that"
                ) from error
            except RayActorError as error:
                raise JudgeStopped(
                    f"the process of the local judge {self._name} died (out of memory?): {last_line(error)}"
                ) from error
            except RayError as error:
                raise JudgeStopped(f"the local judge {self._name} failed: {last_line(error)}") from error
        if isinstance(outcome, EngineSetupError):
            raise outcome
        return list(outcome)

    def close(self) -> None:
        """Ends the process, and Ray where the grader started it. Callable while another thread waits for grades."""
        if self._closed:
            return
        self._closed = True
        if not ray.is_initialized():
            return
        ray.kill(self._actor)
        # The thread that waits for the process has noticed its end before Ray goes.
        ended = self._asking.acquire(timeout=_CLOSE_SECONDS)
        if self._owns_ray:
            ray.shutdown()
        if ended:
            self._asking.release()


def start_grader(
    folder: Path,
    *,
    engine: Literal["auto", "vllm", "transformers"],
    gpus: float,
    cpus: float,
    gpu_memory_utilization: float,
    kv_cache_gib: int,
    max_model_len: int | None,
    start_timeout_seconds: float,
    timeout_seconds: float,
    ray_address: str | None,
    cluster_cpus: int = 1,
) -> ActorGrader:
    """Starts a judge's model in a process of its own, and waits until it is loaded.

    Ray is started where this process has no connection yet; a pool that is started later uses the same one. Close
    the grader after that pool. Started after a pool, it ends with it.

    Args:
        folder: Hugging Face folder of a model with a chat template.
        engine: ``auto``: vLLM where it is installed, else transformers.
        gpus: GPUs that Ray reserves; 0: it runs on CPUs, also where there are GPUs.
        cpus: threads. Ray reserves none for it, so that a pool can be started beside it.
        gpu_memory_utilization: share of its GPU's memory that vLLM may take.
        kv_cache_gib: vLLM's attention cache on a CPU, in GiB.
        max_model_len: longest prompt plus the grade, in tokens; ``None``: the model's limit, at most 8192.
        start_timeout_seconds: how long it may take.
        timeout_seconds: longest wait for the grades of a call.
        ray_address: an existing cluster; ``None``: one on this machine.
        cluster_cpus: least CPUs of a cluster that is started here: what a pool that follows needs.

    Raises:
        EngineSetupError: the folder, the engine or the GPUs cannot serve.
        JudgeStopped: the process died, or was not ready in time.
    """
    name = folder.name
    spec = GraderSpec(folder.resolve(), _engine(engine, gpus), gpu_memory_utilization, kv_cache_gib, max_model_len)
    owns_ray = connect(ray_address, cluster_cpus)
    grader: ActorGrader | None = None
    try:
        total = float(ray.cluster_resources().get("GPU", 0))
        if gpus > total:
            raise EngineSetupError(
                f"the local judge {name} asks for {gpus:g} GPUs, and Ray sees {total:g}. Lower the judge's `gpus`, or "
                "make more visible (CUDA_VISIBLE_DEVICES)."
            )
        env = worker_environment(cpus, 1) | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
        remote: Any = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=0, runtime_env={"env_vars": env})(
            GraderProcess
        )
        actor = remote.remote(spec)
        grader = ActorGrader(actor, name, timeout_seconds=timeout_seconds, owns_ray=owns_ray)
        starting = actor.start.remote()
        if not ray.wait([starting], timeout=start_timeout_seconds)[0]:
            raise JudgeStopped(
                f"the local judge {name} was not ready within {start_timeout_seconds:g} s. Raise the judge's "
                "start_timeout_seconds, or free the GPU that it waits for."
            )
        if (refusal := ray.get(starting)) is not None:
            raise EngineSetupError(refusal)
    except BaseException as error:
        if grader is not None:
            grader.close()
        elif owns_ray:
            ray.shutdown()
        if isinstance(error, RayError):
            raise JudgeStopped(
                f"the process of the local judge {name} died while starting (out of memory?): {last_line(error)}"
            ) from error
        raise
    return grader


def _engine(name: Literal["auto", "vllm", "transformers"], gpus: float) -> EngineName:
    if name == "auto" and gpus == 0 and torch.cuda.is_available():
        return "transformers"  # vLLM as it is installed beside a GPU does not run without one
    return resolve_engine(name)
