"""Batches of tokens (Grain): shuffled for training, in order for evaluation.

    records --data.rows--> Rows (tokenised once, unpadded) --train_batches / eval_batches--> padded NumPy batches

A training batch is a pure function of seed and batch number. So the state of an iterator is one number, and a restored iterator
continues exactly, with packing and buckets, too. Rows are right-padded; prompts for sampling are left-padded.
"""

from __future__ import annotations

import functools
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from rlaif_jax.data.rows import Rows
from rlaif_jax.errors import UserError

Batch = dict[str, np.ndarray]
_VALUES = "labels, margins or other columns"  # in the identity of the data, and in the message that it has changed


def _collate(rows: Rows, indices: Sequence[int], length: int) -> Batch:
    """The padded batch of these rows, `length` tokens wide."""
    items = [rows.items[i] for i in indices]
    shape = (len(items), len(items[0].lines), length)
    tokens = np.full(shape, rows.pad_id, np.int32)
    segment_ids, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    loss_mask = np.zeros(shape, np.float32)
    for b, item in enumerate(items):
        for side, line in enumerate(item.lines):
            at = length - len(line[0][0]) if rows.left else 0
            for number, (ids, start) in enumerate(line, 1):
                end = at + len(ids)
                tokens[b, side, at:end], segment_ids[b, side, at:end] = ids, number
                before = len(line[0][0]) if rows.shared_prefix and number > 1 else 0
                positions[b, side, at:end] = before + np.arange(len(ids))
                loss_mask[b, side, at + max(start, 1) : end] = 1.0  # no logits predict a segment's first token
                at = end
    batch = {"tokens": tokens, "segment_ids": segment_ids}
    batch |= {} if rows.left else {"positions": positions}
    batch |= {"loss_mask": loss_mask} if rows.with_loss_mask else {}
    batch = {name: array[:, 0] if shape[1] == 1 else array for name, array in batch.items()}
    return batch | {name: np.stack([item.scalars[name] for item in items]) for name in items[0].scalars}


def _shape(rows: Rows, buckets: Sequence[int], batch_size: int, mine: Sequence[int] | None) -> tuple[list[int], np.ndarray]:
    """The padded lengths, ascending (the buckets and max_length), and this process's positions in a batch."""
    if any(b < 1 or b > rows.max_length for b in buckets):
        raise UserError(f"buckets: expected lengths from 1 to {rows.max_length} (max_length), found {tuple(buckets)}")
    if batch_size < 1:
        raise UserError(f"batch_size: expected a positive number, found {batch_size}")
    positions = np.arange(batch_size) if mine is None else np.asarray(mine)
    if not len(positions) or positions.min() < 0 or positions.max() >= batch_size:
        raise UserError(f"mine: expected positions in a batch of {batch_size} rows, found {positions.tolist()}")
    return sorted({*buckets, rows.max_length}), positions


def _epoch_plan(bucket_of: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[tuple[int, np.ndarray]]:
    """(bucket, row indices) of every batch of an epoch, in order: a pure function of its arguments.

    An epoch of N rows always has N // batch_size batches. It leaves out N % batch_size rows, drawn anew each epoch. Rows that do
    not fill a batch of their bucket go into a batch of the next longer bucket. Fewer rows than one batch are repeated to fill it.
    """
    rng = np.random.default_rng((seed, epoch))
    count = max(len(bucket_of) // batch_size, 1) * batch_size
    order = np.resize(rng.permutation(len(bucket_of)), count)
    # Shuffled rows are sorted by bucket and cut into batches. A batch with rows of several buckets is as wide as the longest one.
    batches = order[np.argsort(bucket_of[order], kind="stable")].reshape(-1, batch_size)
    return [(int(bucket_of[batch[-1]]), batch) for batch in rng.permutation(batches)]


class Batches:
    """An iterator of batches whose position can be saved and restored exactly. `rows` counts the dropped records."""

    def __init__(self, data: grain.MapDataset, rows: Rows, identity: dict[str, Any]):
        """`data` maps a batch number to a batch. A state can only be restored with the same `identity`."""
        self.rows, self._identity = rows, identity
        # Collating takes microseconds: prefetching threads would cost more than they save.
        self._iterator = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position, as a JSON-able dict; the same on every host."""
        return {"position": self._iterator.get_state(), "data": self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a saved state. UserError if the data or the batching has changed since."""
        saved = state.get("data", {})
        if "rows" in saved and _VALUES not in saved:  # a state of an earlier version: its labels and margins are not known
            saved = saved | {_VALUES: self._identity[_VALUES]}
        changed = [name for name, value in self._identity.items() if saved.get(name) != value]
        if changed := [name for name in changed if name != _VALUES or "rows" not in changed]:
            raise UserError(f"the saved data position is of other data: {', '.join(changed)} changed; start a new run")
        self._iterator.set_state(state["position"])


class JoinedBatches:
    """Joins several iterators: a batch is {name: batch}, a state is {name: state}."""

    def __init__(self, parts: dict[str, Batches]):
        self._parts = parts

    def __iter__(self) -> JoinedBatches:
        return self

    def __next__(self) -> dict[str, Batch]:
        return {name: next(part) for name, part in self._parts.items()}

    def get_state(self) -> dict[str, Any]:
        """See `Batches.get_state`."""
        return {name: part.get_state() for name, part in self._parts.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `Batches.set_state`."""
        for name, part in self._parts.items():
            part.set_state(state[name])


def train_batches(
    rows: Rows, *, batch_size: int, seed: int, buckets: Sequence[int] = (), epochs: int | None = None,
    mine: Sequence[int] | None = None,
) -> Batches:  # fmt: skip
    """Batches, shuffled anew each epoch (see `_epoch_plan`); endless without `epochs`.

    `batch_size` is global. With several processes, `mine` are this process's positions in a batch (`host_rows`).
    With `buckets`, rows of similar length share a batch, which is padded to its bucket; each bucket compiles once. Without
    buckets, every batch is `rows.max_length` wide.
    """
    widths, positions = _shape(rows, buckets, batch_size, mine)
    bucket_of = np.searchsorted(widths, [row.length for row in rows])
    plan_of = functools.lru_cache(maxsize=2)(functools.partial(_epoch_plan, bucket_of, batch_size, seed))
    per_epoch = len(plan_of(0))  # the same in every epoch

    def batch_at(number: int) -> Batch:
        bucket, indices = plan_of(number // per_epoch)[number % per_epoch]
        return _collate(rows, indices[positions], widths[bucket])

    data = grain.MapDataset.range(sys.maxsize if epochs is None else epochs * per_epoch).map(batch_at)
    content = zlib.crc32(np.concatenate([ids for row in rows for line in row.lines for ids, _ in line]).tobytes())
    identity = {"rows": [len(rows), content], _VALUES: _values(rows), "batch_size": batch_size, "seed": seed, "buckets": widths}
    return Batches(data, rows, identity)


def _values(rows: Rows) -> int:
    """A checksum of everything in the rows but their tokens: labels, margins, where answers begin, what the prompts' rows hold."""
    shapes = [[[len(ids), int(start)] for ids, start in line] for row in rows for line in row.lines]
    scalars = [[name, value.item()] for row in rows for name, value in sorted(row.scalars.items())]
    return zlib.crc32(json.dumps([shapes, scalars, rows.notes], default=str).encode())


def eval_batches(rows: Rows, batch_size: int, *, buckets: Sequence[int] = (), mine: Sequence[int] | None = None) -> Iterator[Batch]:
    """Every row once, in order. The last batch is filled up with copies, whose "row_mask" (B,) and loss_mask are 0."""
    widths, positions = _shape(rows, buckets, batch_size, mine)
    for start in range(0, len(rows), batch_size):
        indices = np.minimum(np.arange(start, start + batch_size), len(rows) - 1)
        width = widths[int(np.searchsorted(widths, max(rows[i].length for i in indices)))]
        batch = _collate(rows, indices[positions], width)
        batch["row_mask"] = (np.arange(start, start + batch_size) < len(rows)).astype(np.float32)[positions]
        if "loss_mask" in batch:
            mask = batch["loss_mask"]
            batch["loss_mask"] = mask * batch["row_mask"].reshape(-1, *[1] * (mask.ndim - 1))
        yield batch
