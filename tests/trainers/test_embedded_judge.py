"""The loss of the embedded feedback model against NumPy."""

import jax
import numpy as np
import pytest

from rlaif_jax.data.pipelines import eval_batches, train_batches
from rlaif_jax.data.rows import sft_rows, verdict_rows
from rlaif_jax.data.tokenizer import Encoded
from rlaif_jax.models import ops, transformer
from rlaif_jax.trainers.embedded_judge import feedback_loss, verdict_loss
from rlaif_jax.trainers.sft import sft_loss

WORDS = (5, 9)


def chats(rng, verdicts, first=6):
    """Chats that begin alike; each ends with a question of its own, a verdict and one token more."""
    beginning = rng.integers(10, 100, first)
    questions = [rng.integers(10, 100, rng.integers(2, 5)) for _ in verdicts]
    ends = zip(questions, verdicts, strict=True)
    ids = [np.concatenate([beginning, [100 + i], q, [WORDS[v], 1]]) for i, (q, v) in enumerate(ends)]
    return [(c.astype(np.int32), len(c) - 2) for c in ids]


def pairs(rng):
    return [[chats(rng, (0, 0, 0)), chats(rng, (0, 1, 1), 8)], [chats(rng, (0, 0, 0), 4), chats(rng, (1, 0, 0))]]


def batch_of(rows):
    return next(iter(eval_batches(rows, len(rows))))


def test_verdict_loss_equals_its_numpy_twin_which_reads_every_chat_by_itself(small_model):
    params = jax.tree.map(lambda w: w * 4, transformer.init(small_model, jax.random.key(0)))
    data = pairs(np.random.default_rng(0))
    loss, metrics = verdict_loss(params, batch_of(verdict_rows(data, 40, 0)), small_model, WORDS)
    gaps = {0: [], 1: []}
    for ids, start in (chat for pair in data for side in pair for chat in side):
        head = ids[None, :start]
        hidden = transformer.forward(params, small_model, head, np.ones_like(head), np.arange(start)[None])
        logits = np.asarray(ops.logits(hidden[:, -1], ops.output_matrix(params, small_model)), np.float64)[0]
        gaps[WORDS.index(ids[start])].append(logits[WORDS[0]] - logits[WORDS[1]])
    good, bad = np.array(gaps[0]), np.array(gaps[1])
    assert len(good) == 9 and len(bad) == 3
    expected = 2 * np.log1p(np.exp(-good)).mean() + np.log1p(np.exp(bad)).mean()
    assert np.isclose(float(loss.total / loss.weight), expected, rtol=1e-5)
    found = {k: float(m.value()) for k, m in metrics.items()}
    assert np.isclose(found["good_accuracy"], np.mean(good > 0)) and np.isclose(found["bad_accuracy"], np.mean(bad <= 0))
    assert np.isclose(found["accuracy"], (np.mean(good > 0) + np.mean(bad <= 0)) / 2)


def test_a_line_holds_what_its_chats_share_once():
    rng = np.random.default_rng(0)
    questions = chats(rng, (0, 1))
    rows = verdict_rows([[questions, questions]], 40, 0)
    batch = next(train_batches(rows, batch_size=1, seed=0))
    tokens, segments, positions, mask = (batch[k][0, 0] for k in ("tokens", "segment_ids", "positions", "loss_mask"))
    for number, (ids, start) in enumerate(questions, 2):
        mine = (segments == 1) | (segments == number)
        assert tokens[mine].tolist() == ids[: start + 1].tolist()
        assert positions[mine].tolist() == list(range(start + 1)) and mask[mine].sum() == mask[mine][-1] == 1
    assert mask.sum() == 2 and len(verdict_rows([[questions, questions], *pairs(rng)], rows.max_length, 0)) < 3


@pytest.mark.slow
def test_padding_rows_count_nothing_and_the_parts_add_up(small_model):
    params = transformer.init(small_model, jax.random.key(0))
    data = pairs(np.random.default_rng(1))
    rows = verdict_rows(data, 40, 0)
    verdicts = batch_of(rows)
    alone, _ = verdict_loss(params, verdicts, small_model, WORDS)
    padded, _ = verdict_loss(params, next(iter(eval_batches(rows, 5))), small_model, WORDS)
    assert np.isclose(float(alone.total / alone.weight), float(padded.total / padded.weight), rtol=1e-6)
    chat = [chat for pair in data for side in pair for chat in side]
    roles = batch_of(sft_rows(Encoded([(i, [c]) for i, c in enumerate(chat)]), 20, 0, packing=True, seed=0))
    both, _ = feedback_loss(params, {"roles": roles, "verdicts": verdicts}, small_model, WORDS)
    a = sft_loss(params, roles, small_model)[0]
    assert np.isclose(float(both.total), float(a.total / a.weight + alone.total / alone.weight), rtol=1e-6)
