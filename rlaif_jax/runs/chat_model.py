"""Weights that answer: a run's policy or a Hugging Face folder, for people and scripts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlaif_jax.config.stages import SFT, stage_of
from rlaif_jax.data.tokenizer import StreamDecoder, Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.models import lora as lora_lib
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.peft import load_adapter
from rlaif_jax.models.pretrained import load_policy, policy_config
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.models import BASE, RunModels
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.sampler import make_sampler
from rlaif_jax.sampling.stream import Stream, make_stream
from rlaif_jax.sharding.mesh import MeshConfig, make_mesh
from rlaif_jax.sharding.placement import Placement

Messages = Sequence[dict[str, str]]
_CHAT = SamplingConfig(temperature=0.7)
_WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # of prompts; one compiled program each


@dataclasses.dataclass(frozen=True)
class ChatModel:
    """Weights, config and tokenizer on a mesh. `max_prompt` bounds prompts in tokens; `name` says which weights."""

    params: Any
    cfg: ModelConfig
    tokenizer: Tokenizer
    place: Placement
    name: str
    max_prompt: int

    @classmethod
    def of_run(cls, run: Run, stage: str) -> ChatModel:
        """The policy that a stage left ("base": before any training); prompts are as long as they were in RL."""
        models = RunModels(run)
        if stage != BASE and not (stage == SFT.name and run.cfg.sft is None):
            stage_of(run.cfg, stage)
        name = f"{run.out.resolve()} {stage}"
        return cls(models.policy(stage), models.config, models.tokenizer, run.place, name, run.cfg.max_prompt_tokens)

    @classmethod
    def of_folder(cls, folder: str | Path, max_tokens: int, adapter: str | Path | None = None) -> ChatModel:
        """A Hugging Face folder on all devices (tensor parallel), in its own dtype; on CPU computed in float32.

        `max_tokens`: room for an answer. `adapter` is a folder with a PEFT adapter, merged into the weights.
        """
        cfg = policy_config(folder).model
        compute = "float32" if jax.default_backend() == "cpu" else cfg.param_dtype
        cfg = dataclasses.replace(cfg, compute_dtype=compute)
        place = Placement(make_mesh(MeshConfig(data=1, tensor=-1)))
        tokenizer, most = Tokenizer.load(folder, cfg.vocab_size), cfg.max_positions - max_tokens
        if most < 1:
            raise UserError(f"--max-tokens {max_tokens}: {folder} is made for {cfg.max_positions} tokens, prompt included")
        params, name = load_policy(folder, cfg, place), str(Path(folder).resolve())
        if adapter is not None:
            trained, lora, _ = load_adapter(adapter, cfg)
            shardings = jax.tree.map(lambda x: x.sharding, params)
            merge = jax.jit(partial(lora_lib.merge, lora=lora), donate_argnums=0, out_shardings=shardings)
            params, name = merge(params, trained), f"{name} with {Path(adapter).resolve()}"
        return cls(params, cfg, tokenizer, place, name, most)

    def answer(
        self, prompts: Sequence[str], sampling: SamplingConfig = _CHAT, *, samples: int = 1, seed: int = 0,
        system: str = "",
    ) -> list[list[str]]:  # fmt: skip
        """`samples` answers to each prompt, sampled; the same again for the same seed and order of prompts."""
        if isinstance(prompts, str):
            raise UserError("answer takes a list of prompts, not one text: answer([prompt])")
        answerer = Answerer(self, samples, seed, sampling, system)
        return [answerer(prompt) for prompt in prompts]

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


def chat_messages(prompt: str, system: str = "") -> list[dict[str, str]]:
    """The messages of one request."""
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]


class Answerer:
    """Samples answers; every call draws new ones, the same again for the same seed and order of calls."""

    def __init__(self, model: ChatModel, samples: int, seed: int, sampling: SamplingConfig, system: str = ""):
        self._model, self._samples, self._seed, self._system = model, samples, seed, system
        self._sampling = traced(sampling, model.tokenizer.eos_ids)
        axes, pad_id = transformer.logical_axes(model.cfg), model.tokenizer.pad_id
        self._sampler = make_sampler(
            model.cfg, axes, model.place, group=samples, max_tokens=sampling.max_tokens, pad_id=pad_id
        )  # fmt: skip
        self._make_stream = lambda: make_stream(
            model.params, model.cfg, axes, model.place, max_tokens=sampling.max_tokens, pad_id=pad_id
        )  # fmt: skip
        self._stream: Stream | None = None
        self._calls = 0
        self.seconds = 0.0

    def __call__(self, prompt: str) -> list[str]:
        """All answers to one request; " ..." marks one that did not end."""
        rows = self._model.place.row_shards
        batch = self._model.batch([self._model.encode(chat_messages(prompt, self._system))], rows)
        began = time.perf_counter()
        decoded = jax.device_get(self._sampler(self._model.params, *batch, self._seed, self._calls, self._sampling))
        self.seconds = time.perf_counter() - began
        self._calls += 1
        texts = [self._model.tokenizer.decode(t[m > 0]) for t, m in zip(decoded.tokens, decoded.mask, strict=True)]
        return [t + ("" if f else " ...") for t, f in list(zip(texts, decoded.finished, strict=True))[: self._samples]]

    def stream(self, messages: Messages) -> Iterator[str]:
        """One answer piece by piece; the bytes of a half-finished character are held back."""
        batch = self._model.batch([self._model.encode(messages)], 1)
        stream = self._stream = self._stream or self._make_stream()
        decoder = StreamDecoder(self._model.tokenizer)
        for tokens in stream(*batch, self._seed, self._calls, self._sampling):
            yield "".join(decoder.push(int(t)) for t in tokens)
        yield decoder.flush()
        self._calls += 1
