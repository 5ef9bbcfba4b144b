"""A checkpoint of ours on the mesh as an `LLM`: batched sampling, and verdicts read off the logits of one prefill."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.llm import Failure, LLMReply, LLMRequest, OnReply, OnRow
from rlaif_jax.models import ops, transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sampling.decode import decode
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.rollout import for_sampling
from rlaif_jax.sharding.move import gather, shard
from rlaif_jax.sharding.placement import Placement

_WIDTHS = (32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)  # of prompts; one compiled program each
_REPLIES = (16, 48, 128, 512, 2048)  # bounds on replies; the same


class FlaxLLM:
    """An `LLM` from parameters. A reply depends on its request alone, not on what else is in the batch.

    With several processes all of them make the same calls (see `shared.lead` for work that one of them does).

    Args:
      params, cfg, tokenizer: the model; its own chat template turns messages into tokens.
      place: mesh and rules.
      name: identifies the weights, for cache keys.
      batch_size: rows per call (rounded up to the mesh's row shards).
      max_length: bound on prompt and reply together; a longer prompt is a failure "rejected".
    """

    def __init__(
        self, params: Any, cfg: ModelConfig, tokenizer: Tokenizer, place: Placement, *, name: str, batch_size: int = 64,
        max_length: int = 4096,
    ):  # fmt: skip
        self.name = name
        self._params, self._cfg, self._tokenizer, self._place = params, cfg, tokenizer, place
        self._max_length = max_length
        self._batch_size = -(-batch_size // place.row_shards) * place.row_shards
        axes = transformer.logical_axes(cfg)

        def sample(params, tokens, segment_ids, seeds, texts, sampling, max_tokens):
            keys = jax.vmap(lambda s, t: jax.random.fold_in(jax.random.key(s), t))(seeds, texts)
            return decode(
                for_sampling(params, cfg, axes, place), cfg, tokens, segment_ids, keys, sampling, group=1,
                max_tokens=max_tokens, pad_id=tokenizer.pad_id, place=place,
            )  # fmt: skip

        def choose(params, tokens, segment_ids, choices):
            hidden = transformer.forward(params, cfg, tokens, segment_ids, ops.positions_of(segment_ids), place)
            last = jnp.repeat(hidden[:, -1:], choices.shape[0], axis=1)  # prompts are left-padded
            targets = jnp.broadcast_to(choices, (tokens.shape[0], choices.shape[0]))
            return transformer.logprobs(params, cfg, last, targets)[0]

        self._sample, self._choose = jax.jit(sample, static_argnames="max_tokens"), jax.jit(choose)

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        """See `LLM.complete`."""
        replies: list[LLMReply | None] = [None] * len(requests)

        def arrived(i: int, reply: LLMReply) -> None:
            replies[i] = reply
            if on_reply:
                on_reply(i, reply)

        groups: dict[tuple, list[int]] = {}
        encoded = [self._encode(r) for r in requests]
        for i, (request, ids) in enumerate(zip(requests, encoded, strict=True)):
            if len(ids) + request.max_tokens > self._max_length:
                arrived(i, _too_long(len(ids), self._max_length))
            else:
                groups.setdefault((_width(len(ids)), _bound(request.max_tokens), request.temperature), []).append(i)
        for (width, bound, temperature), members in sorted(groups.items()):
            sampling = traced(SamplingConfig(temperature, max_tokens=bound), self._tokenizer.eos_ids)
            for start in range(0, len(members), self._batch_size):
                rows = members[start : start + self._batch_size]
                arrays = self._batch([encoded[i] for i in rows], width)
                seeds = self._rows([requests[i].seed & 0xFFFFFFFF for i in rows])
                texts = self._rows([zlib.crc32(np.array(encoded[i], np.int32).tobytes()) for i in rows])
                decoded = gather(self._sample(self._params, *arrays, seeds, texts, sampling, max_tokens=bound))
                for row, i in enumerate(rows):
                    arrived(i, self._reply(decoded, row, len(encoded[i]), requests[i].max_tokens))
        return replies

    def choice_logprobs(
        self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None
    ) -> np.ndarray:
        """See `LLM.choice_logprobs`: log P of each choice's first token; the first tokens must differ."""
        tokens = [self._tokenizer.encode_response(c)[0] for c in choices]
        if len(set(tokens)) < len(tokens):
            raise UserError(f"the answers {', '.join(choices)} begin with the same token; they cannot be told apart by it")
        out = np.full((len(requests), len(choices)), np.nan, np.float32)
        encoded = [self._encode(r) for r in requests]
        groups: dict[int, list[int]] = {}
        for i, ids in enumerate(encoded):
            if len(ids) < self._max_length:
                groups.setdefault(_width(len(ids)), []).append(i)
        for width, members in sorted(groups.items()):
            for start in range(0, len(members), self._batch_size):
                rows = members[start : start + self._batch_size]
                arrays = self._batch([encoded[i] for i in rows], width)
                found = gather(self._choose(self._params, *arrays, np.array(tokens, np.int32)))
                out[rows] = found[: len(rows)]
                for i in rows if on_row else ():
                    on_row(i, out[i].tolist())
        return out

    def _encode(self, request: LLMRequest) -> list[int]:
        return self._tokenizer.encode_messages([{"role": m.role, "content": m.content} for m in request.messages])

    def _batch(self, encoded: list[list[int]], width: int) -> tuple[jax.Array, jax.Array]:
        """Left-padded tokens and segment_ids (batch_size, width); spare rows repeat the first."""
        tokens = np.full((self._batch_size, width), self._tokenizer.pad_id, np.int32)
        segments = np.zeros_like(tokens)
        for row in range(self._batch_size):
            ids = encoded[row if row < len(encoded) else 0]
            tokens[row, width - len(ids) :], segments[row, width - len(ids) :] = ids, 1
        return shard((tokens, segments), self._place.rows(self._batch_size))

    def _rows(self, values: list[int]) -> np.ndarray:
        return np.array(values + [0] * (self._batch_size - len(values)), np.uint32)

    def _reply(self, decoded, row: int, prompt_tokens: int, max_tokens: int) -> LLMReply:
        count = min(int(decoded.mask[row].sum()), max_tokens)
        ids = decoded.tokens[row, :count].tolist()
        stopped = bool(ids) and ids[-1] in self._tokenizer.eos_ids
        return LLMReply(self._tokenizer.decode(ids), prompt_tokens, count, "stop" if stopped else "length")


def _width(length: int) -> int:
    return next((w for w in _WIDTHS if w >= length), -(-length // _WIDTHS[-1]) * _WIDTHS[-1])


def _bound(max_tokens: int) -> int:
    return next((b for b in _REPLIES if b >= max_tokens), max_tokens)


def _too_long(length: int, most: int) -> LLMReply:
    return LLMReply(failure=Failure("rejected", f"the prompt has {length} tokens; with the reply at most {most} fit"))
