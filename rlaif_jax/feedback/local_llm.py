"""A model on the mesh as an `LLM`: batched sampling, and verdicts from the logits of one forward pass."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.data.tokenizer import Tokenizer, common_prefix
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.llm import Failure, LLMReply, LLMRequest, OnReply, OnRow
from rlaif_jax.feedback.spending import Ledger, Spending
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sampling.decode import Decoded, decode
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.sampler import for_sampling
from rlaif_jax.sharding.hosts import is_first
from rlaif_jax.sharding.move import gather, shard
from rlaif_jax.sharding.placement import Placement

_WIDTHS = (32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)  # padded prompt lengths; one compiled program each
_FULL_WIDTH = 256  # wider batches have fewer rows, since attention memory grows with the square of the width
_ENDINGS = 16  # most endings that share a prefix in one row
_REPLIES = (16, 48, 128, 512, 2048)  # limits on reply tokens; one compiled program each


def make_sample(cfg: ModelConfig, place: Placement, pad_id: int) -> Callable[..., Decoded]:
    """sample(params, tokens, segment_ids (B, T), seeds, texts (B,) uint32, sampling, max_tokens=...) -> replies, jitted."""
    axes = transformer.logical_axes(cfg)

    def sample(params, tokens, segment_ids, seeds, texts, sampling, max_tokens):
        keys = jax.vmap(lambda s, t: jax.random.fold_in(jax.random.key(s), t))(seeds, texts)
        return decode(
            for_sampling(params, cfg, axes, place), cfg, tokens, segment_ids, keys, sampling, group=1,
            max_tokens=max_tokens, pad_id=pad_id, place=place,
        )  # fmt: skip

    return jax.jit(sample, static_argnames="max_tokens")


def make_choose(cfg: ModelConfig, place: Placement) -> Callable[..., jax.Array]:
    """choose(params, tokens, segment_ids, positions (B, T), ends (B, E), choices (C,)) -> (B, E, C), jitted: the log-prob of
    each choice after each ending of a row."""

    def choose(params, tokens, segment_ids, positions, ends, choices):
        hidden = transformer.forward(params, cfg, tokens, segment_ids, positions, place, shared_prefix=True)
        last = jnp.take_along_axis(hidden, ends[:, :, None], axis=1)
        count = choices.shape[0]
        targets = jnp.tile(choices, (tokens.shape[0], ends.shape[1]))
        found = transformer.logprobs(params, cfg, jnp.repeat(last, count, axis=1), targets)[0]
        return found.reshape(*ends.shape, count)

    return jax.jit(choose)


def rows_per_call(batch_size: int, width: int, place: Placement) -> int:
    """Rows of a batch of prompts of this width: fewer rows for wide prompts, and a multiple of the mesh's row shards."""
    rows = batch_size * _FULL_WIDTH**2 // max(width, _FULL_WIDTH) ** 2
    return max(rows // place.row_shards, 1) * place.row_shards


class LocalLLM:
    """An `LLM` from parameters. A reply depends on its request alone, not on the rest of the batch.

    With several processes, all of them must make the same calls (see `multihost.lead` for work of process 0 alone).

    Args:
      params, cfg, tokenizer: the model. The tokenizer's chat template turns messages into tokens.
      place: mesh and rules.
      name: identifies the weights, for cache keys.
      batch_size: rows per call, rounded up to a multiple of the mesh's row shards. Long prompts get smaller batches.
      max_length: limit on prompt plus reply, in tokens; at most what the model is made for. A longer request gets the failure
        "rejected".
      ledger: counts its requests and tokens.
    """

    def __init__(
        self, params: Any, cfg: ModelConfig, tokenizer: Tokenizer, place: Placement, *, name: str, batch_size: int = 64,
        max_length: int = 4096, ledger: Ledger | None = None,
    ):  # fmt: skip
        self.name, self._ledger = name, ledger
        self.failures: Mapping[int, Failure] = {}
        self._params, self._cfg, self._tokenizer, self._place = params, cfg, tokenizer, place
        self._max_length = min(max_length, cfg.max_positions)
        self._batch_size = -(-batch_size // place.row_shards) * place.row_shards
        self._sample, self._choose = make_sample(cfg, place, tokenizer.pad_id), make_choose(cfg, place)

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
                groups.setdefault((padded_width(len(ids)), reply_bound(request.max_tokens), request.temperature), []).append(i)
        for (width, bound, temperature), members in sorted(groups.items()):
            sampling = traced(SamplingConfig(temperature, max_tokens=bound), self._tokenizer.eos_ids)
            size = rows_per_call(self._batch_size, width, self._place)
            for start in range(0, len(members), size):
                rows = members[start : start + size]
                arrays = self._batch([encoded[i] for i in rows], size, width)
                seeds = _filled([requests[i].seed & 0xFFFFFFFF for i in rows], size)
                texts = _filled([zlib.crc32(np.array(encoded[i], np.int32).tobytes()) for i in rows], size)
                decoded = gather(self._sample(self._params, *arrays, seeds, texts, sampling, max_tokens=bound))
                for row, i in enumerate(rows):
                    arrived(i, self._reply(decoded, row, len(encoded[i]), requests[i].max_tokens))
        answered = [r for r in replies if r.failure is None]
        counts = ([getattr(r, name) for r in answered] for name in ("prompt_tokens", "completion_tokens"))
        self._count(len(answered), *map(sum, counts))
        return replies

    def _count(self, requests: int, prompt_tokens: int, completion_tokens: int) -> None:
        if self._ledger is not None and requests and is_first():
            self._ledger.add(Spending(requests, 0, prompt_tokens, completion_tokens))

    def choice_logprobs(self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None) -> np.ndarray:
        """See `LLM.choice_logprobs`: log P of each choice's first token; the first tokens must differ."""
        tokens = [self._tokenizer.encode_response(c)[0] for c in choices]
        if len(set(tokens)) < len(tokens):
            raise UserError(f"the answers {', '.join(choices)} begin with the same token, so the judge cannot distinguish them")
        out = np.full((len(requests), len(choices)), np.nan, np.float32)
        encoded = [self._encode(r) for r in requests]
        self._count(len(requests), sum(map(len, encoded)), 0)
        too_long = (i for i, ids in enumerate(encoded) if not 1 < len(ids) < self._max_length)
        self.failures = {i: _too_long(len(encoded[i]), self._max_length).failure for i in too_long}
        found_packs = sorted(packs(encoded, self._max_length), key=lambda pack: pack.length(encoded))
        start = 0
        while start < len(found_packs):
            batch = found_packs[start : start + self._batch_size]
            batch = batch[: rows_per_call(self._batch_size, padded_width(batch[-1].length(encoded)), self._place)]
            start += len(batch)
            width = padded_width(batch[-1].length(encoded))
            endings = 1 if all(len(pack.members) == 1 for pack in batch) else _ENDINGS
            arrays = self._packed(batch, encoded, width, endings)
            found = gather(self._choose(self._params, *arrays, np.array(tokens, np.int32)))
            for row, pack in enumerate(batch):
                for ending, i in enumerate(pack.members):
                    out[i] = found[row, ending]
                    if on_row:
                        on_row(i, out[i].tolist())
        return out

    def _packed(self, batch: list[Pack], encoded: list[list[int]], width: int, endings: int) -> list[jax.Array]:
        """tokens, segment_ids, positions (rows, width) and ends (rows, endings). Unused rows are empty."""
        shape = rows_per_call(self._batch_size, width, self._place), width
        tokens = np.full(shape, self._tokenizer.pad_id, np.int32)
        segments, positions, ends = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros((shape[0], endings), np.int32)
        for row, pack in enumerate(batch):
            pieces = [(encoded[pack.members[0]][: pack.prefix], 0)]
            pieces += [(encoded[i][pack.prefix :], pack.prefix) for i in pack.members]
            at = 0
            for number, (ids, first) in enumerate(pieces, 1):
                end = at + len(ids)
                tokens[row, at:end], segments[row, at:end] = ids, number
                positions[row, at:end] = first + np.arange(len(ids))
                if number > 1:
                    ends[row, number - 2] = end - 1
                at = end
        rows = self._place.rows(shape[0])
        return [jax.device_put(a, rows) for a in (tokens, segments, positions, ends)]

    def _encode(self, request: LLMRequest) -> list[int]:
        return self._tokenizer.encode_messages([{"role": m.role, "content": m.content} for m in request.messages])

    def _batch(self, encoded: list[list[int]], size: int, width: int) -> tuple[jax.Array, jax.Array]:
        """Left-padded tokens and segment_ids (size, width). Unused rows repeat the first."""
        tokens = np.full((size, width), self._tokenizer.pad_id, np.int32)
        segments = np.zeros_like(tokens)
        for row in range(size):
            ids = encoded[row if row < len(encoded) else 0]
            tokens[row, width - len(ids) :], segments[row, width - len(ids) :] = ids, 1
        return shard((tokens, segments), self._place.rows(size))

    def _reply(self, decoded, row: int, prompt_tokens: int, max_tokens: int) -> LLMReply:
        count = min(int(decoded.mask[row].sum()), max_tokens)
        ids = decoded.tokens[row, :count].tolist()
        stopped = bool(ids) and ids[-1] in self._tokenizer.eos_ids
        return LLMReply(self._tokenizer.decode(ids), prompt_tokens, count, "stop" if stopped else "length")


@dataclasses.dataclass(frozen=True)
class Pack:
    """Requests with the same first `prefix` tokens, packed into one row: the prefix once, then each ending."""

    members: tuple[int, ...]
    prefix: int

    def length(self, encoded: Sequence[list[int]]) -> int:
        """Tokens of the row."""
        return self.prefix + sum(len(encoded[i]) - self.prefix for i in self.members)


def packs(encoded: Sequence[list[int]], max_length: int) -> list[Pack]:
    """Packs neighbouring requests that share at least two thirds of their tokens. Requests that are too long are left out.

    An ending has at least one token: for a single request, the prefix is everything but its last token.
    """
    done: list[Pack] = []
    for i, ids in enumerate(encoded):
        if not 1 < len(ids) < max_length:
            continue
        if done and len(done[-1].members) < _ENDINGS:
            last = done[-1]
            prefix = min(common_prefix(encoded[last.members[0]], ids), last.prefix, len(ids) - 1)
            joined = Pack((*last.members, i), prefix)
            longest = max(len(encoded[m]) for m in joined.members)
            if 3 * prefix >= 2 * longest and joined.length(encoded) <= max_length:
                done[-1] = joined
                continue
        done.append(Pack((i,), len(ids) - 1))
    return done


def _filled(values: list[int], size: int) -> np.ndarray:
    return np.array(values + [0] * (size - len(values)), np.uint32)


def padded_width(length: int) -> int:
    """Width of a batch whose longest prompt has `length` tokens."""
    return next((w for w in _WIDTHS if w >= length), -(-length // _WIDTHS[-1]) * _WIDTHS[-1])


def reply_bound(max_tokens: int) -> int:
    """Number of tokens that the program for replies of at most `max_tokens` samples."""
    return next((b for b in _REPLIES if b >= max_tokens), max_tokens)


def _too_long(length: int, most: int) -> LLMReply:
    return LLMReply(failure=Failure("rejected", f"the prompt has {length} tokens; prompt and reply may have {most} together"))
