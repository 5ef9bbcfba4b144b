"""`rlaif generate`: answers to prompts, or a chat, from a checkpoint of a run or from a Hugging Face folder."""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.text import Text

from rlaif_jax.data.tokenizer import StreamDecoder, Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.models import lora as lora_lib
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.peft import load_adapter
from rlaif_jax.models.pretrained import load_policy, policy_config
from rlaif_jax.run.folder import Run, open_run
from rlaif_jax.run.models import RunModels
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.sampler import make_sampler
from rlaif_jax.sampling.stream import make_stream
from rlaif_jax.sharding import MeshConfig, Placement, make_mesh

Messages = Sequence[dict[str, str]]
_WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # of prompts; one compiled program each
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights, config and tokenizer on a mesh. `max_prompt` bounds prompts in tokens; `name` tells which weights."""

    params: Any
    cfg: ModelConfig
    tokenizer: Tokenizer
    place: Placement
    name: str
    max_prompt: int

    @classmethod
    def of_run(cls, x: Run, stage: str) -> Model:
        """The policy of a stage; prompts are as long as they were in RL."""
        models = RunModels(x)
        name = f"{x.out.resolve()} {stage}"
        return cls(models.policy(stage), models.config, models.tokenizer, x.place, name, x.cfg.rl.max_prompt)

    @classmethod
    def of_folder(cls, folder: Path, max_tokens: int, adapter: Path | None = None) -> Model:
        """A Hugging Face folder on all devices (tensor parallel), in its own dtype; on CPU computed in float32.

        `adapter` is a folder with a PEFT adapter, merged into the weights.
        """
        cfg = policy_config(folder).model
        compute = "float32" if jax.default_backend() == "cpu" else cfg.param_dtype
        cfg = dataclasses.replace(cfg, compute_dtype=compute)
        place = Placement(make_mesh(MeshConfig(data=1, tensor=-1)))
        tokenizer, most = Tokenizer.load(folder), cfg.max_positions - max_tokens
        if most < 1:
            raise UserError(f"--max-tokens {max_tokens}: {folder} is made for {cfg.max_positions} tokens, prompt included")
        params, name = load_policy(folder, cfg, place), str(Path(folder).resolve())
        if adapter is not None:
            trained, lora, _ = load_adapter(adapter, cfg)
            shardings = jax.tree.map(lambda x: x.sharding, params)
            merge = jax.jit(partial(lora_lib.merge, lora=lora), donate_argnums=0, out_shardings=shardings)
            params, name = merge(params, trained), f"{name} with {Path(adapter).resolve()}"
        return cls(params, cfg, tokenizer, place, name, most)

    def encode(self, messages: Messages) -> list[int]:
        """Tokens of a chat up to the answer; UserError if they are too many."""
        ids = self.tokenizer.encode_messages(messages)
        if len(ids) > self.max_prompt:
            raise UserError(f"the prompt has {len(ids)} tokens; at most {self.max_prompt} fit")
        return ids

    def batch(self, encoded: Sequence[Sequence[int]], rows: int) -> tuple[jax.Array, jax.Array]:
        """Left-padded tokens and segment_ids (rows, Tp) int32 on the mesh; spare rows repeat the first prompt."""
        longest = max(len(ids) for ids in encoded)
        width = next((w for w in _WIDTHS if w >= longest), longest)
        tokens = np.full((rows, width), self.tokenizer.pad_id, np.int32)
        segments = np.zeros_like(tokens)
        for row in range(rows):
            ids = encoded[row if row < len(encoded) else 0]
            tokens[row, width - len(ids) :], segments[row, width - len(ids) :] = ids, 1
        return tuple(jax.device_put((tokens, segments), self.place.rows(rows)))


def chat(prompt: str, system: str = "") -> list[dict[str, str]]:
    """The messages of one request."""
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]


class Answerer:
    """Samples answers; every call draws new ones, the same again for the same seed and order of calls."""

    def __init__(self, model: Model, samples: int, seed: int, sampling: SamplingConfig, system: str = ""):
        self._model, self._samples, self._seed, self._system = model, samples, seed, system
        self._sampling = traced(sampling, model.tokenizer.eos_ids)
        axes, pad_id = transformer.logical_axes(model.cfg), model.tokenizer.pad_id
        self._sampler = make_sampler(
            model.cfg, axes, model.place, group=samples, max_tokens=sampling.max_tokens, pad_id=pad_id
        )  # fmt: skip
        self._make_stream = lambda: make_stream(
            model.params, model.cfg, axes, model.place, max_tokens=sampling.max_tokens, pad_id=pad_id
        )  # fmt: skip
        self._stream = None
        self._calls = 0
        self.seconds = 0.0

    def __call__(self, prompt: str) -> list[str]:
        """All answers to one request; " ..." marks one that did not end."""
        rows = self._model.place.row_shards
        batch = self._model.batch([self._model.encode(chat(prompt, self._system))], rows)
        began = time.perf_counter()
        decoded = jax.device_get(self._sampler(self._model.params, *batch, self._seed, self._calls, self._sampling))
        self.seconds = time.perf_counter() - began
        self._calls += 1
        texts = [self._model.tokenizer.decode(t[m > 0]) for t, m in zip(decoded.tokens, decoded.mask, strict=True)]
        return [t + ("" if f else " ...") for t, f in list(zip(texts, decoded.finished, strict=True))[: self._samples]]

    def stream(self, messages: Messages) -> Iterator[str]:
        """One answer piece by piece; the bytes of a half-finished character are held back."""
        batch = self._model.batch([self._model.encode(messages)], 1)
        self._stream = self._stream or self._make_stream()
        decoder = StreamDecoder(self._model.tokenizer)
        for tokens in self._stream(*batch, self._seed, self._calls, self._sampling):
            yield "".join(decoder.push(int(t)) for t in tokens)
        yield decoder.flush()
        self._calls += 1


def run_generate(args: argparse.Namespace, console: Console) -> None:
    """Answers `args.prompt` or the rows of `args.file`; without either, a chat on standard input until it ends."""
    sampling = SamplingConfig(args.temperature, args.top_k, args.top_p, 0.0, args.max_tokens)
    for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"generate: --{name.replace('_', '-')} is {getattr(args, name)}; expected at least {least}")
    if (args.run is None) == (args.model is None):
        raise UserError("generate: expected either a run's folder or --model FOLDER")
    if (args.file is None) != (args.out is None):
        raise UserError("generate: --file and --out go together")
    if args.adapter and not args.model:
        raise UserError("generate: --adapter goes with --model; a run's own adapters are merged already")
    if args.model:
        model = Model.of_folder(args.model, args.max_tokens, args.adapter)
    else:
        model = Model.of_run(open_run(args.run, console=console), args.stage)
    if args.file:
        from rlaif_jax.commands.answer_file import answer_file

        answer_file(model, args.file, args.out, sampling, args, console)
        return
    answer = Answerer(model, args.samples, args.seed, sampling, args.system)
    for prompt in args.prompt:
        _show(console, f"> {prompt}\n", style="bold")
        _answer(answer, chat(prompt, args.system), prompt, args.samples, console)
    if not args.prompt:
        _chat(answer, args, console)


def _chat(answer: Answerer, args: argparse.Namespace, console: Console) -> None:
    """A model of a folder remembers the conversation; one of a run learned from single requests and gets them singly."""
    console.print("Type a request; an empty line or Ctrl-D ends.", style="dim")
    before = chat("", args.system)[:-1]
    while prompt := _ask(console):
        messages = [*before, {"role": "user", "content": prompt}]
        try:
            text = _answer(answer, messages, prompt, args.samples, console)
        except UserError as error:
            console.print(f"{error}; the conversation begins anew", style="yellow", markup=False)
            before = chat("", args.system)[:-1]
            continue
        if args.model and args.samples == 1:
            before = [*messages, {"role": "assistant", "content": text}]


def _answer(answer: Answerer, messages: Messages, prompt: str, samples: int, console: Console) -> str:
    if samples > 1:
        for text in answer(prompt):
            _show(console, f"{text}\n")
        return ""
    pieces = []
    for piece in answer.stream(messages):
        _show(console, piece)
        pieces.append(piece)
    _show(console, "\n")
    return "".join(pieces)


def _show(console: Console, text: str, style: str = "") -> None:
    """A model's text is data: no markup, no control characters of the terminal."""
    console.print(Text(_CONTROL.sub("", text), style=style), end="", soft_wrap=True)


def _ask(console: Console) -> str:
    try:
        return console.input("> ").strip()
    except EOFError:
        return ""
