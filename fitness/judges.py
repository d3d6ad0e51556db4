"""From a config to a judge: keys, addresses, and the answers to compare with."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, ValidationError

from fitness.endpoint import Endpoint
from fitness.errors import ScoringSetupError
from fitness.explain import explain
from fitness.judge import LlmJudge
from fitness.judge_config import JudgeConfig
from fitness.pacing import Pacer
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.rubric import Rubric
from fitness.spending import Purse
from fitness.verdict_cache import VerdictCache

_OPENAI_URL = "https://api.openai.com/v1"


def build_judge(
    config: JudgeConfig,
    rubric: Rubric,
    *,
    setting: str = "fitness.judge",
    rivals: Mapping[str, Response] | None = None,
    cache: Path | None = None,
    spending: Path | None = None,
) -> LlmJudge:
    """Builds the judge of a config, with its key from the environment; sends nothing.

    Args:
        config: who judges.
        rubric: what is asked, in its final wording.
        setting: dotted path of the config, for messages.
        rivals: from :func:`read_rivals`, where answers are compared.
        cache: file of the verdicts of all runs; none: nothing is kept.
        spending: file in which the calls of a run are counted; none: they are counted in memory.

    Raises:
        ScoringSetupError: the environment holds no key and the server is not a local one, or a file cannot be used.
    """
    client = openai.AsyncOpenAI(
        api_key=api_key(config, setting),
        # Named here, or the client would take an address from the environment, where no record shows it.
        base_url=config.base_url or _OPENAI_URL,
        max_retries=0,
        timeout=config.timeout_seconds,
    )
    endpoint = Endpoint(
        client,
        config.model,
        Purse(spending, setting, max_usd=config.max_usd, max_calls=config.max_calls),
        Pacer(config.requests_per_minute, config.tokens_per_minute),
        price=config.price_per_million,
        form=None if config.reply_format == "auto" else config.reply_format,
        temperature=config.temperature,
        max_reply_tokens=config.max_reply_tokens,
        logprobs=config.expected_score,
        max_retries=config.max_retries,
        timeout_seconds=config.timeout_seconds,
        setting=setting,
    )
    return LlmJudge(
        endpoint,
        rubric,
        samples=config.samples,
        per_criterion=config.calls == "per_criterion",
        expected_score=config.expected_score,
        max_reply_retries=config.max_reply_retries,
        max_concurrency=config.max_concurrency,
        cache=VerdictCache(cache) if cache is not None and config.cache else None,
        rivals=rivals,
        setting=setting,
    )


def api_key(config: JudgeConfig, setting: str) -> str:
    """The key of a judge's server, from the environment; a placeholder for a local one that needs none.

    Raises:
        ScoringSetupError: there is no key, and the server is not a local one.
    """
    base_url = config.base_url or _OPENAI_URL
    name = config.api_key_env or ("OPENAI_API_KEY" if base_url == _OPENAI_URL else None)
    key = os.environ.get(name, "").strip() if name else ""
    if not key and not _is_local(base_url):
        raise ScoringSetupError(
            f"{setting}.api_key_env: the environment variable {name} is not set; set it to your key for {base_url}"
            if name
            else f"{setting}.api_key_env: missing; name the environment variable that holds your key for {base_url}"
        )
    return key or "none"


class _Line(BaseModel):
    prompt_id: str
    text: str
    finish: Literal["stop", "length"] = "stop"
    tokens: int = 0


def read_rivals(
    files: Sequence[Path], *, prompts: Sequence[Prompt], root: Path, setting: str
) -> dict[str, Response] | None:
    """The fixed model's answers that answers are compared with.

    Args:
        files: as :func:`read_answers` takes them; where a prompt has several answers the first counts.
        prompts: those that need one.
        root: folder against which relative paths are read.
        setting: dotted path of the judge's settings, for messages.

    Returns:
        By prompt id; ``None`` where no file is named.

    Raises:
        ScoringSetupError: a file cannot be read, or a prompt has no answer.
    """
    if not files:
        return None
    found: dict[str, Response] = {}
    for index, file in enumerate(files):
        found = {**read_answers(root / file.expanduser(), setting=f"{setting}.against[{index}]"), **found}
    missing = [prompt.id for prompt in prompts if prompt.id not in found]
    if missing:
        named = ", ".join(repr(one) for one in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ScoringSetupError(
            f"{setting}.against: {len(missing)} of {len(prompts)} prompts have no answer to compare with: {named}; "
            "add a file with them, such as a parent's transcripts (search and validation) from an earlier run"
        )
    return found


def read_answers(path: Path, *, setting: str) -> dict[str, Response]:
    """A model's answers, by prompt id.

    Args:
        path: JSONL with ``prompt_id`` and ``text``; lines without a ``prompt_id`` are passed over, as a transcript's
            first is. Where a prompt has several answers the first counts.
        setting: what named the file, for messages.

    Raises:
        ScoringSetupError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ScoringSetupError(f"{setting}: cannot read {path}: {error}") from error
    found: dict[str, Response] = {}
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ValueError("it is another kind of JSON")
            if "prompt_id" not in data:
                continue
            line = _Line.model_validate(data)
        except ValidationError as error:
            raise ScoringSetupError(f"{path}:{number}: {explain(error, _Line)}") from error
        except (ValueError, RecursionError) as error:
            raise ScoringSetupError(f"{path}:{number}: not a JSON object: {error}") from error
        found.setdefault(line.prompt_id, Response(line.prompt_id, line.text, line.tokens, line.finish))
    return found


def _is_local(base_url: str) -> bool:
    """Whether a server is on this machine or in this network, by its address or its bare host name."""
    host = urlsplit(base_url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".localhost", ".internal"))
    return address.is_private or address.is_loopback
