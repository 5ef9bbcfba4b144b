"""Loads or trains a Hugging Face tokenizer with a chat template, and encodes records with it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_jax import state_files
from rlaif_jax.data.chat_template import CHATML, ChatTemplate, Part
from rlaif_jax.data.records import turns_of
from rlaif_jax.errors import UserError
from rlaif_jax.models.hf_files import hub_name_help, read_object

PAD, START, END, END_OF_TEXT = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"

# The format is ChatML, but marker, role and newline are one token. As three tokens they would make up a fifth of a sequence
# with an answer of twenty tokens. The longest added token wins, so START alone can still be encoded.
_ROLES = tuple(f"{START}{role}\n" for role in ("system", "user", "assistant"))
_SPECIALS = (PAD, START, END, END_OF_TEXT, *_ROLES)
_MAX_TOKEN_BYTES = 12  # four Chinese characters, so that stock phrases are not single tokens
_MOST_TOKENS = 2**22  # sixteen times the largest known vocabulary
_HALF = "\ufffd"

Segment = tuple[np.ndarray, int]  # tokens (int32) of one conversation, and where its answer begins
TOO_LONG = ("drop", "truncate")
_log = logging.getLogger(__name__)
_NO_HINTS = "TRANSFORMERS_NO_ADVISORY_WARNINGS"  # such as "PyTorch was not found": this package does not need it


class Tokenizer:
    """Converts text to tokens and back with the folder's chat template. Never runs code from the folder.

    Texts of prompts, answers and system turns are data: no tokenizer folder makes a control token of them. Control tokens are
    all tokens that the folder lists as added, special or not.

    Attributes:
      vocab_size: the highest token id plus one.
      eos_ids: the tokens that end an answer; first the one with which the template ends a turn.
      pad_id: the padding token; the last of `eos_ids` if the folder has none. This is safe, since segment_ids mark the padding.
      control_ids: the control tokens.
    """

    def __init__(self, backend: Any, class_name: str = "", end_ids: Sequence[int] = ()):
        """`backend` is a fast tokenizer of transformers, to be saved with `class_name`; `end_ids` are tokens that the model's
        configs name as ends. Use `load` or `train` instead."""
        self._backend, self._class_name = backend, class_name
        self._name = backend.name_or_path or "(unnamed)"
        self._template = ChatTemplate(backend.chat_template, backend.special_tokens_map, self._name)
        self._fast = backend.backend_tokenizer
        self._fast.no_truncation()
        self._fast.no_padding()
        vocab = self._fast.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1  # not the count, since ids may have gaps
        if self.vocab_size > _MOST_TOKENS:
            raise UserError(f"tokenizer {self._name}: a token has the id {self.vocab_size - 1}; expected less than {_MOST_TOKENS}")
        self._gaps = set(range(self.vocab_size)) - set(vocab.values())
        self.control_ids = frozenset(self._fast.get_added_tokens_decoder())
        self._own_controls: dict[str, list[int]] = {}
        self._end = self._end_of_turn()
        self._more_ends = tuple(i for i in end_ids if i in self.control_ids)
        named = (backend.eos_token_id, vocab.get(END), vocab.get(END_OF_TEXT), *self._more_ends)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys([self._end, *(i for i in named if i is not None)]))
        self.pad_id: int = self.eos_ids[-1] if backend.pad_token_id is None else backend.pad_token_id

    @classmethod
    def load(cls, folder: str | Path, rows: int | None = None) -> Tokenizer:
        """Loads a local Hugging Face folder; nothing is downloaded. UserError if it is not one, or has no tokenizer.json.

        tokenizer.json is used unchanged; AutoTokenizer would replace parts of it for some model families. `rows` is the number
        of embeddings of the folder's model: UserError if there are more tokens.
        """
        os.environ.setdefault(_NO_HINTS, "1")
        from transformers import PreTrainedTokenizerFast

        folder = Path(folder)
        if not (folder / "tokenizer_config.json").exists():
            hint = hub_name_help(folder)
            raise UserError(f"tokenizer {folder}: it has no tokenizer_config.json; expected a Hugging Face folder{hint}")
        if not (folder / "tokenizer.json").exists():
            raise UserError(f"tokenizer {folder}: expected a fast tokenizer (tokenizer.json), found none")
        config = read_object(folder / "tokenizer_config.json")
        _refuse_prefix(folder / "tokenizer.json")
        with _library(f"tokenizer {folder}: cannot be loaded"):
            backend = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
            if backend.chat_template is None and (folder / "chat_template.json").exists():
                backend.chat_template = read_object(folder / "chat_template.json").get("chat_template")
            found = cls(backend, str(config.get("tokenizer_class") or ""), _end_ids(folder))
        if rows is not None and found.vocab_size > rows:
            raise UserError(f"{folder}: the tokenizer has {found.vocab_size} tokens, but the model only {rows}")
        return found

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, folder: str | Path) -> Tokenizer:
        """Trains a byte-level BPE with at most `vocab_size` tokens, and saves it in the Hugging Face format.

        The same texts give the same files. Every digit, punctuation mark and newline is a separate token. Encoding and decoding
        returns any text unchanged. UserError if `vocab_size` is too small for all bytes, or if there is no text.
        """
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Backend
        os.environ.setdefault(_NO_HINTS, "1")
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
            tokenizer_object=backend, pad_token=PAD, eos_token=END, chat_template=CHATML,
            additional_special_tokens=[START, END_OF_TEXT, *_ROLES], clean_up_tokenization_spaces=False,
        )  # fmt: skip
        fast.save_pretrained(str(folder))
        return cls.load(folder)

    def encode_chat_prompt(self, prompt: str, system: str = "") -> list[int]:
        """Tokens of a request, up to where the answer begins."""
        messages = [{"role": "system", "content": system}] if system else []
        return self.encode_messages([*messages, {"role": "user", "content": prompt}])

    def encode_messages(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of a chat of several turns ({"role", "content"}), up to where the answer begins."""
        return self._encode_parts(self._template.parts(messages, generate=True))

    def encode_dialogue(self, prompt: str, response: str, system: str = "", finished: bool = True) -> list[int]:
        """Tokens of a request and its answer, with the template's own end of the chat if the answer is `finished`."""
        turns = [("system", system)] * bool(system) + [("user", prompt), ("assistant", response)]
        parts = self._template.parts([{"role": role, "content": text} for role, text in turns], generate=False)
        return self._encode_parts(parts if finished or not parts[-2:][0][1] else parts[:-1])

    def encode_response(self, text: str) -> list[int]:
        """Tokens of an answer and the end-of-turn token, which is trained and sampled like any other token."""
        return [*self._encode_text(text), self._end]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens without those that end an answer. Other control tokens are written as their names, so that a reward or
        a reader sees that they were sampled. Bytes that are not valid UTF-8, and ids without a token, become U+FFFD."""
        shown = [i for i in map(int, ids) if i not in self.eos_ids]
        pieces, start = [], 0
        for end in [*(n for n, i in enumerate(shown) if i >= self.vocab_size or i in self._gaps), len(shown)]:
            pieces.append(self._fast.decode(shown[start:end], skip_special_tokens=False))
            start = end + 1
        return _HALF.join(pieces)

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
        state_files.write_text(path, json.dumps(config, ensure_ascii=False, indent=2) + "\n")
        generation = Path(folder) / "generation_config.json"
        if self._more_ends and not generation.exists():
            state_files.write_text(generation, json.dumps({"eos_token_id": list(self.eos_ids)}) + "\n")

    def _encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """Tokens of a chat. The texts of turns are encoded together with the template's text, as in the model's own training,
        unless a control token would come out of them, or one of the template's would be lost; then they are encoded apart."""
        found = self._encoding("".join(text for text, _ in parts))
        spans, start = [], 0
        for text, is_turn in parts:
            spans += [(start, start + len(text))] if is_turn else []
            start += len(text)
        places = [(i, span) for i, span in zip(found.ids, found.offsets, strict=True) if i in self.control_ids]
        own = [i for text, is_turn in parts if not is_turn for i in self._controls(text)]
        if own == [i for i, _ in places] and not any(begin < b and a < end for _, (begin, end) in places for a, b in spans):
            return found.ids
        return [i for text, is_turn in parts for i in (self._encode_text(text) if is_turn else self._encoding(text).ids)]

    def _controls(self, text: str) -> list[int]:
        """The control tokens in one of the template's own texts, of which there are few."""
        if text not in self._own_controls:
            self._own_controls[text] = [i for i in self._encoding(text).ids if i in self.control_ids]
        return self._own_controls[text]

    def _encode_text(self, text: str) -> list[int]:
        """Tokens of a text by itself, without any control token."""
        ids = self._encoding(text).ids
        return ids if self.control_ids.isdisjoint(ids) else self._plain_encoding(text)

    def _encoding(self, text: str, plain: bool = False) -> Any:
        problem = f"tokenizer {self._name}: cannot encode a text"
        with _library(problem):
            try:
                return (self._plain if plain else self._fast).encode(text, add_special_tokens=False)
            except TypeError as error:  # all other texts can be encoded as UTF-8
                raise UserError(f"{problem}: it holds half of a character (a lone surrogate)") from error

    @functools.cached_property
    def _plain(self) -> Any:
        """The tokenizer without added tokens, so that their names are ordinary text."""
        from tokenizers import Tokenizer as Backend

        return Backend.from_str(json.dumps(json.loads(self._fast.to_str()) | {"added_tokens": []}))

    def _plain_encoding(self, text: str) -> list[int]:
        """Tokens of a text without added tokens. Where the model itself makes a control token of a word, the word is split."""
        allowed = {self._fast.token_to_id(token) for token in [self._backend.unk_token] if token}
        found = self._encoding(text, plain=True)
        wrong = [at for i, at in zip(found.ids, found.offsets, strict=True) if i in self.control_ids - allowed]
        if not wrong:
            return found.ids
        if any(end - begin < 2 for begin, end in wrong):
            raise UserError(f"tokenizer {self._name}: the character {text[wrong[0][0]]!r} of a text is a control token there")
        cuts = [0, *(begin + 1 for begin, _ in wrong), len(text)]
        return [i for a, b in itertools.pairwise(cuts) for i in self._plain_encoding(text[a:b])]

    def _end_of_turn(self) -> int:
        """The control token with which the template ends an answer, found by laying one out; else the EOS token."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        last, is_turn = self._template.parts(turns, generate=False)[-1]
        ids = [] if is_turn else self._encoding(last.strip()).ids
        if ids and ids[0] in self.control_ids:
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
    keep_end: bool = False, *, field: str = "",
) -> Encoded:  # fmt: skip
    """Tokenises every record once. Records longer than `max_length` are dropped or truncated, counted and logged.

    `too_long` is "drop" or "truncate"; `what` names the records in messages, and `field` the config field of the limit. UserError
    if no record is left.
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
        reason = f"none of {len(records)} {what} fits into {max_length} tokens; raise {field or 'the limit'}" if records else ""
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


def _refuse_prefix(path: Path) -> None:
    """UserError for a BPE with continuing_subword_prefix, which none of our families has: a wrong one aborts the process."""
    model = read_object(path).get("model")
    if isinstance(model, dict) and model.get("type", "BPE") == "BPE" and model.get("continuing_subword_prefix"):
        raise UserError(f"{path}: continuing_subword_prefix is set for a BPE, which is not supported; expected null")


def _end_ids(folder: Path) -> list[int]:
    """The end tokens that generation_config.json and config.json of a folder name."""
    found: list[int] = []
    for path in (folder / "generation_config.json", folder / "config.json"):
        ids = read_object(path).get("eos_token_id") if path.exists() else None
        ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
        if wrong := [i for i in ids if type(i) is not int or i < 0]:
            raise UserError(f"{path}: eos_token_id holds {wrong[0]!r}; expected token ids")
        found += ids
    return found


@contextlib.contextmanager
def _library(problem: str) -> Iterator[None]:
    """Turns every error of the tokenizer libraries, even a panic of their Rust code, into a UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and "pyo3" not in type(error).__module__:
            raise
        raise UserError(f"{problem}: {str(error).strip().split(chr(10))[0] or type(error).__name__}") from error
