"""A folder's chat template as a form: the template's own text, with places for the texts of the turns.

A template never sees a text. It renders a mark for each turn, and the texts are put in the places of the marks. So no text can
choose what the template writes, be cut by it, or be taken for its control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif_jax.errors import UserError
from rlaif_jax.models.bounded import ask
from rlaif_jax.models.folder_worker import render

# ChatML, the template of tokenizers that we train.
CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
_MARK = re.compile("\ufdd0(\\d+)\ufdd1")  # characters that Unicode keeps out of texts
# White space around a mark shows what the template strips there: nothing, line feeds, or all white space.
_LEFT, _RIGHT = "\n\t\n", "\n \n"
_STRIPPED_LEFT = {_LEFT: "", "\t\n": "\n", "": None}  # what is left of _LEFT -> argument of str.lstrip ("": nothing is stripped)
_STRIPPED_RIGHT = {_RIGHT: "", "\n ": "\n", "": None}
_NOTHING = {"": ""}
# A mark that opens a thinking block, as tags, brackets or special tokens: <think>, [THINK], <|thinking|>, <seed:think> ...
_THINK = re.compile(r"([<\[◁](?:[|｜])?)(/?)((?:\w+[:_])?(?:think|thinking|thought|reasoning|reason)(?:[|｜])?[>\]▷])", re.I)
_MOST_TEMPLATE = 500_000

Messages = Sequence[Mapping[str, str]]
Part = tuple[str, bool]  # a text, and whether it is the text of a turn
_Slot = tuple[int, str | None, str | None]  # turn, and what to strip on its left and right


class ChatTemplate:
    """Lays out chats. A template of a folder is rendered in another process, with limits on its time and memory.

    `values` are the special tokens by name ("bos_token") that a template may write; `name` is the tokenizer's, for messages.
    """

    def __init__(self, template: Any, values: Mapping[str, Any], name: str):
        if isinstance(template, Mapping):
            template = template.get("default")
        if template is None:
            raise UserError(f"tokenizer {name}: it has no chat template; use an instruct model")
        if not isinstance(template, str) or len(template) > _MOST_TEMPLATE:
            raise UserError(f"tokenizer {name}: its chat template is no text of at most {_MOST_TEMPLATE:,} characters")
        self._template, self._name = template, name
        self._values = {k: v for k, v in values.items() if isinstance(v, str)}
        self._forms: dict[tuple, list[str | _Slot]] = {}

    def parts(self, messages: Messages, generate: bool) -> list[Part]:
        """The chat in pieces, up to where the answer begins (`generate`), else with the template's own end.

        UserError if the template fails, takes too long, or does not write the text of every turn.
        """
        key = (tuple((m["role"], bool(m["content"])) for m in messages), generate)
        if key not in self._forms:
            self._forms[key] = self._form(*key)
        found: list[Part] = []
        for piece in self._forms[key]:
            if isinstance(piece, str):
                found.append((piece, False))
                continue
            turn, left, right = piece
            text = messages[turn]["content"]
            text = text if left == "" else text.lstrip(left)
            found.append((text if right == "" else text.rstrip(right), True))
        return found

    def _form(self, turns: tuple[tuple[str, bool], ...], generate: bool) -> list[str | _Slot]:
        roles = ", ".join(role for role, _ in turns)
        rendered = self._render([(_chat(turns, padded, in_parts), generate) for in_parts in (0, 1) for padded in (0, 1)])
        problem = rendered[0].get("error")
        for plain, padded in (rendered[:2], rendered[2:]):
            if "text" in plain and "text" in padded:
                try:
                    form = _compared(plain["text"], padded["text"], {i for i, (_, text) in enumerate(turns) if text})
                except ValueError as error:
                    problem = problem or str(error)
                    continue
                return self._closed(form) if generate else form
        raise UserError(f"tokenizer {self._name}: its chat template does not accept the roles {roles}: {problem}")

    def _render(self, chats: list[tuple[list[dict[str, Any]], bool]]) -> list[dict[str, str]]:
        job = {"template": self._template, "values": self._values, "chats": chats}
        if self._template == CHATML:
            return render(job)
        try:
            return ask(job)
        except TimeoutError as error:
            raise UserError(f"tokenizer {self._name}: its chat template {error}") from error

    def _closed(self, form: list[str | _Slot]) -> list[str | _Slot]:
        """The form with an end of the thinking block that its last piece opens."""
        tail = form[-1] if form and isinstance(form[-1], str) else ""
        marks = list(_THINK.finditer(tail))
        if not marks or marks[-1][2]:
            return form
        opened, _, closed = marks[-1].groups()
        return [*form[:-1], f"{tail.rstrip()}\n\n{opened}/{closed}\n\n"]


def _chat(turns: Sequence[tuple[str, bool]], padded: int, in_parts: int) -> list[dict[str, Any]]:
    """A chat with marks for texts, in white space if `padded`; with contents as lists of parts if `in_parts`."""
    messages = []
    for turn, (role, has_text) in enumerate(turns):
        mark = f"\ufdd0{turn}\ufdd1" if has_text else ""
        text = f"{_LEFT}{mark}{_RIGHT}" if padded and mark else mark
        messages.append({"role": role, "content": [{"type": "text", "text": text}] if in_parts else text})
    return messages


def _compared(plain: str, padded: str, turns: set[int]) -> list[str | _Slot]:
    """The form that two renderings of a chat show. ValueError if a turn is missing or altered in one of them."""
    (own, order), (own_padded, order_padded) = _split(plain), _split(padded)
    if missing := turns - set(order):
        raise ValueError(f"it does not write the text of turn {min(missing) + 1}")
    if order != order_padded or not set(order) <= turns:
        raise ValueError("it writes other turns for other texts")
    gaps = []
    for i, (between, seen) in enumerate(zip(own, own_padded, strict=True)):
        rights, lefts = _STRIPPED_RIGHT if i > 0 else _NOTHING, _STRIPPED_LEFT if i < len(order) else _NOTHING
        fits = ((rights[r], lefts[left]) for r in rights for left in lefts if r + between + left == seen)
        gaps.append(next(fits, None))
    if None in gaps:
        raise ValueError("it alters the text of a turn")
    form: list[str | _Slot] = [own[0]]
    for i, turn in enumerate(order):
        form += [(turn, gaps[i][1], gaps[i + 1][0]), own[i + 1]]
    return form


def _split(text: str) -> tuple[list[str], list[int]]:
    """The template's own pieces, and the turns between them."""
    pieces = _MARK.split(text)
    return pieces[::2], [int(turn) for turn in pieces[1::2]]
