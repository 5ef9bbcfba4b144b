"""Loads or trains a Hugging Face tokenizer with a chat template, and encodes records with it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from rlaif_jax.data.records import turns_of
from rlaif_jax.errors import UserError

PAD, START, END, END_OF_TEXT = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"

# The format is ChatML, but marker, role and newline are one token. As three tokens they would make up a fifth of a sequence
# with an answer of twenty tokens. The longest added token wins, so START alone can still be encoded.
_ROLES = tuple(f"{START}{role}\n" for role in ("system", "user", "assistant"))
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
_SPECIALS = (PAD, START, END, END_OF_TEXT, *_ROLES)
_MAX_TOKEN_BYTES = 12  # four Chinese characters, so that stock phrases are not single tokens
_HALF = "\ufffd"

Segment = tuple[np.ndarray, int]  # tokens (int32) of one conversation, and where its answer begins
TOO_LONG = ("drop", "truncate")
_log = logging.getLogger(__name__)


class Tokenizer:
    """Converts text to tokens and back with the folder's chat template. Never runs code from the folder.

    Attributes:
      vocab_size: the highest token id plus one.
      eos_ids: the tokens that end an answer; first the one with which the template ends a turn.
      pad_id: the padding token; the last of `eos_ids` if the folder has none. This is safe, since segment_ids mark the padding.
    """

    def __init__(self, backend: Any, class_name: str = ""):
        """`backend` is a fast tokenizer of transformers, to be saved with `class_name`. Use `load` or `train` instead."""
        self._backend, self._class_name = backend, class_name
        self._name = backend.name_or_path or "(unnamed)"
        if backend.chat_template is None:
            raise UserError(f"tokenizer {self._name}: it has no chat template; use an instruct model")
        vocab = backend.get_vocab()
        self._specials = sorted(backend.all_special_tokens, key=len, reverse=True)
        self.vocab_size = max(vocab.values()) + 1  # not the count, since ids may have gaps
        self._end = self._end_of_turn()
        named = (backend.eos_token_id, vocab.get(END), vocab.get(END_OF_TEXT))
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys([self._end, *(i for i in named if i is not None)]))
        self.pad_id: int = self.eos_ids[-1] if backend.pad_token_id is None else backend.pad_token_id

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Loads a local Hugging Face folder; nothing is downloaded. UserError if it is not one, or has no tokenizer.json.

        tokenizer.json is used unchanged; AutoTokenizer would replace parts of it for some model families.
        """
        from transformers import PreTrainedTokenizerFast

        config = Path(folder) / "tokenizer_config.json"
        if not config.exists():
            raise UserError(f"tokenizer {folder}: it has no tokenizer_config.json; expected a Hugging Face folder")
        if not (Path(folder) / "tokenizer.json").exists():
            raise UserError(f"tokenizer {folder}: expected a fast tokenizer (tokenizer.json), found none")
        try:
            named = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class")
            backend = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the library raises any error of its parsers, even a plain Exception
            raise UserError(f"tokenizer {folder}: cannot be loaded: {_first_line(error)}") from error
        return cls(backend, named or "")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, folder: str | Path) -> Tokenizer:
        """Trains a byte-level BPE with at most `vocab_size` tokens, and saves it in the Hugging Face format.

        The same texts give the same files. Every digit, punctuation mark and newline is a separate token. Encoding and decoding
        returns any text unchanged. UserError if `vocab_size` is too small for all bytes, or if there is no text.
        """
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Backend
        from transformers import PreTrainedTokenizerFast

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        texts = [t for t in texts if t]
        if not texts:
            raise UserError("tokenizer: no text to train on")
        if vocab_size < len(alphabet) + len(_SPECIALS):
            raise UserError(f"tokenizer.vocab_size: expected >= {len(alphabet) + len(_SPECIALS)}, found {vocab_size}")
        backend = Backend(models.BPE())
        pieces = pre_tokenizers.Split(Regex(r"\p{N}|\p{P}|\n|[^\p{N}\p{P}\n]+"), "isolated")
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pieces, as_bytes])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(_SPECIALS), initial_alphabet=alphabet,
            max_token_length=_MAX_TOKEN_BYTES, show_progress=False,
        )  # fmt: skip
        backend.train_from_iterator(texts, trainer)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token=PAD, eos_token=END, chat_template=_TEMPLATE,
            additional_special_tokens=[START, END_OF_TEXT, *_ROLES], clean_up_tokenization_spaces=False,
        )  # fmt: skip
        fast.save_pretrained(str(folder))
        return cls.load(folder)

    def encode_chat_prompt(self, prompt: str, system: str = "") -> list[int]:
        """Tokens of a request, up to where the answer begins.

        Special tokens in the texts lose their effect: a space is put into them ("< |im_end|>").
        """
        messages = [{"role": "system", "content": system}] if system else []
        return self.encode_messages([*messages, {"role": "user", "content": prompt}])

    def encode_messages(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of a chat of several turns ({"role", "content"}), up to where the answer begins. See `encode_chat_prompt`."""
        safe = [{**m, "content": self._defused(m["content"])} for m in messages]
        return self._backend.encode(self._render(safe, generate=True), add_special_tokens=False)

    def encode_dialogue(self, prompt: str, response: str, system: str = "") -> list[int]:
        """Tokens of a request and its answer, with the template's own end of the chat."""
        turns = [("system", system)] * bool(system) + [("user", prompt), ("assistant", response)]
        safe = [{"role": role, "content": self._defused(text)} for role, text in turns]
        return self._backend.encode(self._render(safe, generate=False), add_special_tokens=False)

    def encode_response(self, text: str) -> list[int]:
        """Tokens of an answer and the end-of-turn token, which is trained and sampled like any other token.

        Special tokens in the text become ordinary tokens, so a text cannot end its turn early.
        """
        return [*self._backend.encode(text, add_special_tokens=False, split_special_tokens=True), self._end]

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens. Bytes that are not valid UTF-8 become U+FFFD."""
        return self._backend.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Writes the Hugging Face format, readable by transformers 4, too."""
        self._backend.save_pretrained(str(folder))
        path = Path(folder) / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        known = self._class_name not in ("", "TokenizersBackend")
        config["tokenizer_class"] = self._class_name if known else "PreTrainedTokenizerFast"
        if isinstance(config.get("extra_special_tokens"), list):
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        for name in ("is_local", "local_files_only", "backend"):  # facts of this process, not of the tokenizer
            config.pop(name, None)
        path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def _defused(self, text: str) -> str:
        for special in self._specials:
            if special in text:
                text = text.replace(special, f"{special[0]} {special[1:]}")
        return text

    def _render(self, messages: list[dict[str, str]], generate: bool) -> str:
        try:
            # Keeps Qwen3's template from opening a thinking block. Other templates ignore the option.
            return self._backend.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, enable_thinking=False
            )  # fmt: skip
        except TemplateError as error:
            roles = ", ".join(m["role"] for m in messages)
            raise UserError(f"tokenizer {self._name}: its chat template does not accept the roles {roles}: {error}") from error

    def _end_of_turn(self) -> int:
        """The special token with which the template ends an answer, found by rendering one; else the EOS token."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}]
        tail = self._render(turns, generate=False).rpartition("bcd")[2].strip()
        ids = self._backend.encode(tail, add_special_tokens=False)
        if ids and ids[0] in self._backend.added_tokens_decoder:
            return ids[0]
        if self._backend.eos_token_id is None:
            raise UserError(f"tokenizer {self._name}: neither its chat template nor its config has an end-of-turn token")
        return self._backend.eos_token_id


class StreamDecoder:
    """Decodes token by token. The bytes of an incomplete character are held back until it is complete.

    All returned texts, that of flush() included, join to exactly `tokenizer.decode(all tokens)`.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # Tokens of the last returned text are kept as context, since some decoders strip the space before a first word.
        self._context: list[int] = []
        self._pending: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that this token completes, or ""."""
        self._pending.append(token)
        text = self._pending_text()
        whole = text.rstrip(_HALF)
        new, self._shown = whole[self._shown :], max(self._shown, len(whole))
        if whole == text:
            self._context, self._pending, self._shown = self._pending, [], 0
        return new

    def flush(self) -> str:
        """The remaining text, with incomplete characters as U+FFFD. The decoder is then ready for a new text."""
        new = self._pending_text()[self._shown :]
        self._context, self._pending, self._shown = [], [], 0
        return new

    def _pending_text(self) -> str:
        known = len(self._tokenizer.decode(self._context)) if self._context else 0
        return self._tokenizer.decode(self._context + self._pending)[known:]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """(index, token lines) of each record that fits, and the number of dropped and of truncated records."""

    items: list[tuple[int, list[Segment]]]
    dropped: int = 0
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.items)


def encode_records(
    records: Sequence[Any], lines_of: Callable[[Any], list[Segment]], max_length: int, too_long: str, what: str,
    keep_end: bool = False,
) -> Encoded:  # fmt: skip
    """Tokenises every record once. Records longer than `max_length` are dropped or truncated, counted and logged.

    `too_long` is "drop" or "truncate"; `what` names the records in messages. UserError if no record is left.
    """
    if too_long not in TOO_LONG:
        raise UserError(f"too_long: expected one of {', '.join(TOO_LONG)}, found {too_long!r}")
    items, dropped, truncated = [], 0, 0
    for index, record in enumerate(records):
        lines = lines_of(record)
        if max(len(tokens) for tokens, _ in lines) > max_length:
            # Prompts keep their end, where the answer begins. Answers lose their end and the EOS, so that the model does not
            # learn to stop midway. A record without room for one token of its answer is dropped: it has nothing to learn.
            if too_long == "drop" or not all(keep_end or start < max_length for _, start in lines):
                dropped += 1
                continue
            truncated += 1
            lines = [(t[-max_length:] if keep_end else t[:max_length], start) for t, start in lines]
        items.append((index, lines))
    if dropped or truncated:
        _log.warning("%d of %d %s exceed %d tokens: %d dropped, %d truncated",
                     dropped + truncated, len(records), what, max_length, dropped, truncated)  # fmt: skip
    if not items:
        reason = f"none of {len(records)} {what} fits into {max_length} tokens; raise the limit" if records else ""
        raise UserError(reason or f"there are no {what} to make batches from")
    return Encoded(items, dropped, truncated)


def chat_segment(tokenizer: Tokenizer, messages: Sequence[Any], answer: str) -> Segment:
    """Tokens of a chat (objects with `role` and `content`) with this answer, and where the answer begins."""
    head = tokenizer.encode_messages([{"role": m.role, "content": m.content} for m in messages])
    return np.array(head + tokenizer.encode_response(answer), np.int32), len(head)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two token lists."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def conversation(tokenizer: Tokenizer, record: Any, response: str) -> Segment:
    """Tokens of a record's chat with this answer and its end of turn, and where the answer begins: only the answer is learned."""
    head = tokenizer.encode_messages(turns_of(record))
    return np.array(head + tokenizer.encode_response(response), np.int32), len(head)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
