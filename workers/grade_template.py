"""How a judge's model is asked for a grade, in its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from transformers import AutoTokenizer

from fitness.judge_protocol import Messages
from workers.errors import EngineSetupError, last_line


class GradeTemplate:
    """Writes conversations as the model's chat template does, and finds the tokens of grades.

    Args:
        folder: with the tokenizer.

    Raises:
        EngineSetupError: there is no chat template, or it refuses a plain conversation.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        template = self._tokenizer.chat_template
        if not template:
            raise EngineSetupError(
                f"the judge's model {folder} has no chat template, so nobody can say how it is asked. Name an "
                "instruction-tuned model, or put its template into the folder as chat_template.jinja."
            )
        text = template if isinstance(template, str) else " ".join(template.values())
        self._control = [
            token.content
            for token in self._tokenizer.added_tokens_decoder.values()
            if len(token.content.strip()) > 1 and (token.special or token.content in text)
        ]
        self._has_system = True
        self._has_system = self._writes_system()
        try:
            self._write([{"role": "user", "content": "?"}])
        except jinja2.TemplateError as error:
            raise EngineSetupError(
                f"the chat template of the judge's model {folder} refuses a single question: {last_line(error)}. "
                "Name another model, or put another template into the folder as chat_template.jinja."
            ) from error

    def tokenise(self, conversation: Messages) -> list[int]:
        """The token ids after which the model's answer begins.

        Texts stay texts: what in them looks like one of the model's control tokens (``<|im_end|>``) is broken by a
        space, or an answer could end its own turn and speak as somebody else.
        """
        return self._ids(self._write([{**turn, "content": self._disarm(turn["content"])} for turn in conversation]))

    def grade_tokens(self, grades: Sequence[str]) -> list[int]:
        """The token that each grade is when an answer begins with it.

        Raises:
            EngineSetupError: a grade is not a single token, or two share one.
        """
        text = self._write([{"role": "user", "content": "?"}])
        before = self._ids(text)
        after = [self._ids(text + grade) for grade in grades]
        tokens = [ids[-1] if ids[:-1] == before else None for ids in after]
        unfit = [grade for grade, token in zip(grades, tokens, strict=True) if token is None or tokens.count(token) > 1]
        if unfit:
            raise EngineSetupError(
                f"to the tokenizer of the judge's model {self._folder} these grades are not one token each, or share "
                f"one: {', '.join(unfit)}. Give the rubric a scale of single digits, such as 1 to 7."
            )
        return [ids[-1] for ids in after]

    def _write(self, conversation: Messages) -> str:
        turns = [dict(turn) for turn in conversation]
        if not self._has_system and len(turns) > 1 and turns[0]["role"] == "system":
            system, user, *rest = turns
            turns = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        # Models that think before they answer must not: the next token has to be the grade. Other templates ignore it.
        written: str = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return written

    def _writes_system(self) -> bool:
        """Whether the template has a place for a system message: some refuse it, some drop it silently."""
        task = "Grade the answer."
        try:
            return task in self._write([{"role": "system", "content": task}, {"role": "user", "content": "?"}])
        except jinja2.TemplateError:
            return False

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _disarm(self, text: str) -> str:
        for token in self._control:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text
