"""A Hugging Face tokenizer folder with its chat template, loaded from disk or trained on the run's own texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rlaif_jax.errors import UserError

PAD, USER, ASSISTANT, SYSTEM, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"

# One token per role: with texts of twenty tokens, ChatML's "<|im_start|>user\n" would be a fifth of every sequence.
_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


class Tokenizer:
    """Text <-> tokens with the folder's own chat template. Never runs code from the folder."""

    def __init__(self, backend):
        self._backend = backend
        if backend.chat_template is None:
            raise UserError(f"tokenizer {backend.name_or_path}: it has no chat template")
        self.vocab_size = len(backend)
        self._end = self._end_of_turn()
        named = [backend.eos_token_id, *(backend.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))]
        self.eos_ids = tuple(dict.fromkeys([self._end, *(i for i in named if i is not None and i != backend.unk_token_id)]))
        self.pad_id = backend.pad_token_id if backend.pad_token_id is not None else self.eos_ids[-1]

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """From a local Hugging Face folder; nothing is downloaded."""
        from transformers import AutoTokenizer

        if not (Path(folder) / "tokenizer_config.json").exists():
            raise UserError(f"tokenizer {folder}: no tokenizer_config.json there; expected a Hugging Face folder")
        return cls(AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, folder: str | Path) -> Tokenizer:
        """A byte-level BPE whose tokens are at most four Chinese characters, saved in the Hugging Face form."""
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Backend
        from transformers import PreTrainedTokenizerFast

        backend = Backend(models.BPE())
        split = Regex(r"\p{N}|\p{P}|\n|[^\p{N}\p{P}\n]+")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[PAD, USER, ASSISTANT, SYSTEM, END], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), max_token_length=12,  # bytes: 4 Chinese characters
        )  # fmt: skip
        backend.train_from_iterator(texts, trainer)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token=PAD, eos_token=END, chat_template=_TEMPLATE,
            additional_special_tokens=[USER, ASSISTANT, SYSTEM], clean_up_tokenization_spaces=False,
        )  # fmt: skip
        fast.save_pretrained(str(folder))
        return cls.load(folder)

    def encode_chat_prompt(self, prompt: str, system: str = "") -> list[int]:
        """Tokens of the conversation up to where the assistant begins to answer."""
        messages = [{"role": "system", "content": system}] if system else []
        text = self._render([*messages, {"role": "user", "content": prompt}], generate=True)
        return self._backend.encode(text, add_special_tokens=False)

    def encode_response(self, text: str) -> list[int]:
        """Tokens of an answer and the end-of-turn token, which is trained on and sampled as any other."""
        return [*self._backend.encode(text, add_special_tokens=False), self._end]

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens; bytes that form no character show as U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: str | Path) -> None:
        """Writes the Hugging Face form."""
        self._backend.save_pretrained(str(folder))

    def _render(self, messages: list[dict[str, str]], generate: bool) -> str:
        return self._backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)

    def _end_of_turn(self) -> int:
        """The token with which the template closes an answer, found by rendering one."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}]
        tail = self._render(turns, generate=False).rpartition("bcd")[2].strip()
        ids = self._backend.encode(tail, add_special_tokens=False)
        if not ids:
            if self._backend.eos_token_id is None:
                raise UserError(f"tokenizer {self._backend.name_or_path}: neither template nor config names an end token")
            return self._backend.eos_token_id
        return ids[0]


class StreamDecoder:
    """Text piece by piece; the bytes of a half-finished character are held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._ids, self._shown = tokenizer, [], 0

    def push(self, token: int) -> str:
        """The new text that this token completes, possibly none."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        new, self._shown = text[self._shown :], len(text)
        return new

    def flush(self) -> str:
        """What is left, half characters as U+FFFD."""
        text = self._tokenizer.decode(self._ids)
        new, self._shown = text[self._shown :], len(text)
        return new
