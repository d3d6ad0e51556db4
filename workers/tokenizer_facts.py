"""What a tokenizer says about itself, as transformers reads it: tokens, roles, chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer

from workers.errors import ModelError, last_line

Role = Literal["bos", "eos", "pad", "unk"]
ROLES: tuple[Role, ...] = ("bos", "eos", "pad", "unk")
Conversation = Sequence[Mapping[str, str]]

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "*.tiktoken")
_REMEDY = "Copy tokenizer.json, tokenizer_config.json and chat_template.jinja from the model it was trained from."


@dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer, as transformers reads it.

    Attributes:
        tokenizer: the transformers object, for rendering and splitting.
        vocabulary: token to id, added tokens included.
        added: the tokens that are matched before the text is split, with their ids.
        roles: per role the token and its id; both ``None`` where the role has no token.
        chat_template: Jinja text, ``None`` where there is none.
    """

    tokenizer: Any
    vocabulary: Mapping[str, int]
    added: Mapping[str, int]
    roles: Mapping[Role, tuple[str | None, int | None]]
    chat_template: str | None

    def render(self, conversation: Conversation, *, template: str | None = None, prompt: bool = False) -> str:
        """The conversation as the template writes it.

        Args:
            conversation: turns of ``role`` and ``content``.
            template: Jinja text in place of the tokenizer's own.
            prompt: whether the header of the answer to come is written as well.

        Raises:
            ModelError: the template cannot write it, or there is none.
        """
        template = template or self.chat_template
        if template is None:
            raise ModelError("There is no chat template.")
        turns = [dict(turn) for turn in conversation]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, chat_template=template, add_generation_prompt=prompt, tokenize=False
            )
        except Exception as error:  # a stranger's template can raise whatever Python raises
            raise ModelError(last_line(error)) from error
        return str(text)


def read_tokenizer(folder: Path) -> TokenizerFacts:
    """Reads the tokenizer of a model folder, without running code from it.

    Args:
        folder: a Hugging Face model folder.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    # Without these, transformers gives some models an empty tokenizer instead of an error.
    if not any(next(folder.glob(pattern), None) for pattern in _VOCABULARIES):
        raise ModelError(f"{folder} has no tokenizer. {_REMEDY}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        template = tokenizer.chat_template
        return TokenizerFacts(
            tokenizer=tokenizer,
            vocabulary=tokenizer.get_vocab(),
            added=tokenizer.get_added_vocab(),
            roles={
                role: (getattr(tokenizer, f"{role}_token"), getattr(tokenizer, f"{role}_token_id")) for role in ROLES
            },
            # Some tokenizers name several; the one for chatting is called "default".
            chat_template=(template.get("default") if isinstance(template, dict) else template) or None,
        )
    except Exception as error:  # whatever transformers and tokenizers raise on files they do not understand
        raise ModelError(f"the tokenizer in {folder} cannot be read ({last_line(error)}). {_REMEDY}") from error
