"""Tokenises records once, as unpadded rows, for each kind of training. `pipelines` makes batches of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, SftExample, turns_of
from rlaif_jax.data.tokenizer import Encoded, Segment, Tokenizer, common_prefix, conversation, encode_records
from rlaif_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """One row before padding: lines of packed segments (one line; two for a pair), and scalars such as a label."""

    lines: tuple[tuple[Segment, ...], ...]
    scalars: dict[str, np.generic] = dataclasses.field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of the longest line."""
        return max(sum(len(tokens) for tokens, _ in line) for line in self.lines)


@dataclasses.dataclass(frozen=True)
class Rows(Sequence):
    """Rows, and how to collate them. `dropped` and `truncated` count the records that were too long.

    `left`: pad on the left. `shared_prefix`: positions of the later segments of a line continue those of its first segment.
    `notes`: what rewards read of the records beside their tokens; part of the data's identity.
    """

    items: list[Row]
    max_length: int
    pad_id: int
    dropped: int = 0
    truncated: int = 0
    with_loss_mask: bool = False
    left: bool = False
    shared_prefix: bool = False
    notes: Any = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def encode_sft(
    records: Sequence[SftExample], tokenizer: Tokenizer, max_length: int, too_long: str = "drop", *, field: str = ""
) -> Encoded:
    """Tokens of prompt and response of every example that fits into `max_length`, which is the config's `field`."""
    return encode_records(
        records, lambda r: [conversation(tokenizer, r, r.response)], max_length, too_long, "examples", field=field
    )  # fmt: skip


def pack(lengths: Sequence[int], max_length: int, seed: int) -> list[list[int]]:
    """Groups of indices whose lengths sum to at most `max_length`: first fit in a seeded order.

    Done once per run; each epoch shuffles the groups. Segments of a row do not attend to each other, so the grouping does not
    change the loss.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    first_open = 0
    for index in np.random.default_rng(seed).permutation(len(lengths)):
        size = lengths[index]
        place = next((g for g in range(first_open, len(groups)) if room[g] >= size), None)
        if place is None:
            groups.append([])
            room.append(max_length)
            place = len(groups) - 1
            first_open = max(first_open, len(groups) - 64)  # search only 64 groups: linear time, and rows are almost as full
        groups[place].append(int(index))
        room[place] -= size
    return groups


def sft_rows(encoded: Encoded, max_length: int, pad_id: int, *, packing: bool, seed: int) -> Rows:
    """Rows with one example each, or with `packing` as many as fit.

    Batches: tokens, segment_ids (0 = padding), positions (B, T) int32; loss_mask (B, T) float32, 1 on the tokens to predict.
    """
    segments = [lines[0] for _, lines in encoded.items]
    groups = pack([len(ids) for ids, _ in segments], max_length, seed) if packing else np.arange(len(segments))[:, None]
    rows = [Row((tuple(segments[i] for i in group),)) for group in groups]
    return Rows(rows, max_length, pad_id, encoded.dropped, encoded.truncated, with_loss_mask=True)


def _plain_rows(encoded: Encoded, max_length: int, pad_id: int, scalars: Callable[[int], dict], left=False) -> Rows:
    rows = [Row(tuple((line,) for line in lines), scalars(index)) for index, lines in encoded.items]
    return Rows(rows, max_length, pad_id, encoded.dropped, encoded.truncated, left=left)


def pair_rows(
    pairs: Sequence[PreferencePair], tokenizer: Tokenizer, max_length: int, too_long: str = "drop", *, field: str = ""
) -> Rows:
    """Rows of pairs, chosen first. Batches: tokens, segment_ids, positions (B, 2, T) int32; margin (B,) float32."""
    encoded = encode_records(
        pairs, lambda p: [conversation(tokenizer, p, text) for text in (p.chosen, p.rejected)],
        max_length, too_long, "pairs", field=field,
    )  # fmt: skip
    return _plain_rows(encoded, max_length, tokenizer.pad_id, lambda i: {"margin": np.float32(pairs[i].margin)})


def verdict_rows(pairs: Sequence[Sequence[Sequence[Segment]]], max_length: int, pad_id: int) -> Rows:
    """Rows of two lines, the good answer first. Batches: tokens, segment_ids, positions, loss_mask (B, 2, T).

    A line is one answer with all questions about it. Segment 1 is the common beginning of these chats. Each further segment is a
    question and the first token of its reply; only this token has loss_mask 1. The line needs `shared_prefix` attention. Batches
    are padded to the longest row, which is often much shorter than `max_length`.
    """
    rows = [Row(tuple(_shared(line) for line in pair)) for pair in pairs]
    kept = [row for row in rows if row.length <= max_length]
    if not kept:
        raise UserError(f"none of {len(rows)} pairs of verdicts fits into {max_length} tokens; raise the limit")
    longest = max(row.length for row in kept)
    return Rows(kept, longest, pad_id, len(rows) - len(kept), with_loss_mask=True, shared_prefix=True)


def _shared(questions: Sequence[Segment]) -> tuple[Segment, ...]:
    """The common beginning of these chats, then the rest of each, up to the first token of its reply."""
    first = questions[0][0]
    common = min(common_prefix(first, ids[: start - 1]) for ids, start in questions)
    return (first[:common], common), *((ids[common : start + 1], start - common) for ids, start in questions)


def labelled_rows(
    items: Sequence[LabelledResponse], tokenizer: Tokenizer, max_length: int, too_long: str = "drop", *, field: str = ""
) -> Rows:
    """Rows of labelled responses. Batches: tokens, segment_ids, positions (B, T) int32; label (B,) float32."""
    encoded = encode_records(
        items, lambda r: [conversation(tokenizer, r, r.response)], max_length, too_long, "labelled responses", field=field
    )  # fmt: skip
    return _plain_rows(encoded, max_length, tokenizer.pad_id, lambda i: {"label": np.float32(items[i].label)})


def prompt_rows(
    records: Sequence[Prompt], tokenizer: Tokenizer, max_length: int, too_long: str = "drop", *, field: str = "rl.max_prompt_tokens"
) -> Rows:
    """Rows of prompts, left-padded. Batches: tokens, segment_ids (P, Tp) int32; row (P,) int64, the index of the record."""

    def line(record: Prompt) -> list[Segment]:
        tokens = tokenizer.encode_messages(turns_of(record))
        return [(np.array(tokens, np.int32), len(tokens))]

    encoded = encode_records(records, line, max_length, too_long, "prompts", keep_end=True, field=field)
    rows = _plain_rows(encoded, max_length, tokenizer.pad_id, lambda i: {"row": np.int64(i)}, left=True)
    return dataclasses.replace(rows, notes=[dict(r.meta) for r in records])
