"""Batches of tokens from records: endless shuffled ones for training, whole passes for evaluation (Grain).

Texts are tokenised once. A training iterator is random access underneath, so its whole state is one index: restoring it
continues exactly, packing included. Rows are right-padded; prompts for sampling are left-padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, SftExample
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError

Batch = dict[str, np.ndarray]
Row = dict[str, np.ndarray]


class Encoded(list):
    """Rows ready to be collated; `dropped` counts records that were too long and are left out."""

    dropped: int = 0


def _encode(records: Sequence, rows_of: Callable[[object], list[list[int]]], max_length: int, what: str) -> Encoded:
    """One item per record: (index, token lists). Records with a list longer than `max_length` are dropped, counted."""
    encoded = Encoded()
    for index, record in enumerate(records):
        parts = rows_of(record)
        if max(len(p) for p in parts) <= max_length:
            encoded.append((index, parts))
    encoded.dropped = len(records) - len(encoded)
    if not encoded:
        raise UserError(f"none of {len(records)} {what} fits into {max_length} tokens; raise max_length")
    return encoded


def _conversation(tokenizer: Tokenizer, prompt: str, response: str, system: str) -> tuple[list[int], int]:
    head = tokenizer.encode_chat_prompt(prompt, system)
    return head + tokenizer.encode_response(response), len(head)


def encode_sft(examples: Sequence[SftExample], tokenizer: Tokenizer, max_length: int) -> Encoded:
    """(tokens, length of the prompt) per example."""
    starts: dict[int, int] = {}

    def rows_of(example):
        tokens, start = _conversation(tokenizer, example.prompt, example.response, example.system)
        starts[id(example)] = start
        return [tokens]

    encoded = _encode(examples, rows_of, max_length, "examples")
    out = Encoded((parts[0], starts[id(examples[index])]) for index, parts in encoded)
    out.dropped = encoded.dropped
    return out


def pack(lengths: Sequence[int], max_length: int, seed: int) -> list[list[int]]:
    """Indices grouped so that each group's lengths sum to at most `max_length`: first fit over a seeded order.

    Packed once for the run; each epoch shuffles the groups. Segments don't see each other, so company does not matter.
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
            first_open = max(first_open, len(groups) - 64)  # bounded search: linear time, hardly less full
        groups[place].append(int(index))
        room[place] -= size
    return groups


def _sft_row(examples: Sequence[tuple[list[int], int]], max_length: int, pad_id: int) -> Row:
    row = {
        "tokens": np.full(max_length, pad_id, np.int32), "segment_ids": np.zeros(max_length, np.int32),
        "positions": np.zeros(max_length, np.int32), "loss_mask": np.zeros(max_length, np.float32),
    }  # fmt: skip
    at = 0
    for number, (tokens, start) in enumerate(examples, 1):
        span = slice(at, at + len(tokens))
        row["tokens"][span] = tokens
        row["segment_ids"][span] = number
        row["positions"][span] = np.arange(len(tokens))
        row["loss_mask"][at + start : at + len(tokens)] = 1.0
        at += len(tokens)
    return row


def sft_rows(encoded: Encoded, max_length: int, pad_id: int, *, packing: bool, seed: int) -> list[Row]:
    """Fixed-length rows with one example each, or as many as fit."""
    lengths = [len(tokens) for tokens, _ in encoded]
    groups = pack(lengths, max_length, seed) if packing else [[i] for i in range(len(encoded))]
    return [_sft_row([encoded[i] for i in group], max_length, pad_id) for group in groups]


def _right_padded(tokens: Sequence[int], max_length: int, pad_id: int) -> Row:
    row = _sft_row([(list(tokens), 0)], max_length, pad_id)
    del row["loss_mask"]
    return row


def pair_rows(pairs: Sequence[PreferencePair], tokenizer: Tokenizer, max_length: int) -> tuple[list[Row], int]:
    """tokens, segment_ids, positions (2, T), chosen first, and margin; and how many were too long."""
    encoded = _encode(
        pairs, lambda p: [_conversation(tokenizer, p.prompt, t, p.system)[0] for t in (p.chosen, p.rejected)],
        max_length, "pairs",
    )  # fmt: skip
    rows = []
    for index, sides in encoded:
        both = [_right_padded(s, max_length, tokenizer.pad_id) for s in sides]
        rows.append({k: np.stack([b[k] for b in both]) for k in both[0]} | {"margin": np.float32(pairs[index].margin)})
    return rows, encoded.dropped


def labelled_rows(
    items: Sequence[LabelledResponse], tokenizer: Tokenizer, max_length: int
) -> tuple[list[Row], int]:  # fmt: skip
    """tokens, segment_ids, positions (T,) and label; and how many were too long."""
    encoded = _encode(
        items, lambda r: [_conversation(tokenizer, r.prompt, r.response, r.system)[0]], max_length, "responses"
    )  # fmt: skip
    rows = [
        _right_padded(parts[0], max_length, tokenizer.pad_id) | {"label": np.float32(items[index].label)}
        for index, parts in encoded
    ]
    return rows, encoded.dropped


def prompt_rows(records: Sequence[Prompt], tokenizer: Tokenizer, max_length: int) -> tuple[list[Row], int]:
    """Left-padded tokens and segment_ids (Tp,) and `row`, the record's index; and how many were too long."""
    encoded = _encode(
        records, lambda r: [tokenizer.encode_chat_prompt(r.prompt, r.system)], max_length, "prompts"
    )  # fmt: skip
    rows = []
    for index, (tokens,) in encoded:
        row = {"tokens": np.full(max_length, tokenizer.pad_id, np.int32), "segment_ids": np.zeros(max_length, np.int32)}
        row["tokens"][max_length - len(tokens) :] = tokens
        row["segment_ids"][max_length - len(tokens) :] = 1
        rows.append(row | {"row": np.int64(index)})
    return rows, encoded.dropped


def _trim(batch: Batch, buckets: Sequence[int]) -> Batch:
    """Right-padded arrays cut to the smallest bucket that holds every real token of the batch."""
    used = int(np.max(np.nonzero(batch["segment_ids"])[-1])) + 1
    length = next((b for b in sorted(buckets) if b >= used), batch["segment_ids"].shape[-1])
    whole = batch["segment_ids"].shape
    return {k: v[..., :length] if v.shape == whole else v for k, v in batch.items()}


def train_batches(
    rows: Sequence[Row], *, batch_size: int, seed: int, buckets: Sequence[int] = (), host_index: int = 0,
    host_count: int = 1,
) -> grain.DatasetIterator:  # fmt: skip
    """Endless batches, shuffled anew each epoch; an epoch's end runs on into the next, so no row is lost.

    `batch_size` is the global one; each host gets its contiguous share. With `buckets`, a batch is padded to the
    smallest of these lengths that fits (one compiled shape each). The iterator has get_state() and set_state().
    """
    if batch_size % host_count:
        raise UserError(f"batch_size {batch_size} does not divide among {host_count} hosts")
    share = batch_size // host_count
    mine = slice(host_index * share, (host_index + 1) * share)

    def collate(items: list[Row]) -> Batch:
        batch = {k: np.stack([item[k] for item in items[mine]]) for k in items[0]}
        return _trim(batch, buckets) if buckets else batch

    data = grain.MapDataset.source(rows).seed(seed).shuffle().repeat()
    data = data.batch(batch_size, drop_remainder=True, batch_fn=lambda items: collate(list(items)))
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def eval_batches(rows: Sequence[Row], batch_size: int) -> Iterator[Batch]:
    """Every row once, in order; the last batch is filled with copies whose "row_mask" is 0 (and loss_mask, if any)."""
    for start in range(0, len(rows), batch_size):
        items = list(rows[start : start + batch_size])
        real = len(items)
        items += [items[-1]] * (batch_size - real)
        batch = {k: np.stack([item[k] for item in items]) for k in items[0]}
        batch["row_mask"] = (np.arange(batch_size) < real).astype(np.float32)
        if "loss_mask" in batch:
            batch["loss_mask"] = batch["loss_mask"] * batch["row_mask"][:, None]
        yield batch


def prompt_batches(
    records: Sequence[Prompt], tokenizer: Tokenizer, *, batch_size: int, max_length: int, seed: int
) -> grain.DatasetIterator:
    """Endless shuffled batches of left-padded prompts: tokens, segment_ids (P, Tp) int32 and row (P,) int64."""
    return train_batches(prompt_rows(records, tokenizer, max_length)[0], batch_size=batch_size, seed=seed)


def prompt_eval_batches(
    records: Sequence[Prompt], tokenizer: Tokenizer, *, batch_size: int, max_length: int
) -> Iterator[Batch]:  # fmt: skip
    """Every prompt once, with row_mask (P,)."""
    return eval_batches(prompt_rows(records, tokenizer, max_length)[0], batch_size)
