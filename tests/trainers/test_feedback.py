"""The loss of the embedded feedback model against NumPy."""

import jax
import numpy as np

from rlaif_jax.models import ops, transformer
from rlaif_jax.trainers.feedback import feedback_loss, verdict_loss
from rlaif_jax.trainers.sft import sft_loss

WORDS = (5, 9)


def pairs(rng, rows=3, length=10):
    tokens = rng.integers(10, 100, (rows, 2, length)).astype(np.int32)
    lengths = rng.integers(5, length + 1, (rows, 2))
    segments = (np.arange(length) < lengths[..., None]).astype(np.int32)
    mask = np.zeros((rows, 2, length), np.float32)
    for r in range(rows):
        for side in range(2):
            start = lengths[r, side] - 2
            tokens[r, side, start] = WORDS[side]
            mask[r, side, start : start + 2] = 1
    positions = np.broadcast_to(np.arange(length), tokens.shape).astype(np.int32)
    return {"tokens": tokens, "segment_ids": segments, "positions": positions, "loss_mask": mask}


def test_verdict_loss_equals_its_numpy_twin(small_model):
    params = jax.tree.map(lambda w: w * 4, transformer.init(small_model, jax.random.key(0)))
    batch = pairs(np.random.default_rng(0))
    loss, metrics = verdict_loss(params, batch, small_model, WORDS)
    total, right, ordered = 0.0, [], []
    for r in range(3):
        gaps = []
        for side in range(2):
            tokens, segments, positions = (batch[k][r, side][None] for k in ("tokens", "segment_ids", "positions"))
            hidden = transformer.forward(params, small_model, tokens, segments, positions)
            place = int(np.argmax(batch["loss_mask"][r, side])) - 1
            logits = np.asarray(ops.logits(hidden[:, place], ops.output_matrix(params, small_model)), np.float64)[0]
            logp = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            gaps.append(logp[WORDS[0]] - logp[WORDS[1]])
            total -= (2 - side) * logp[WORDS[side]]
            right.append((gaps[-1] > 0) == (side == 0))
        total += np.log1p(np.exp(-(gaps[0] - gaps[1])))
        ordered.append(gaps[0] > gaps[1])
    assert np.isclose(float(loss.total), total, rtol=1e-5) and float(loss.weight) == 3
    assert np.isclose(float(metrics["accuracy"].total / metrics["accuracy"].weight), np.mean(right))
    assert np.isclose(float(metrics["pair_accuracy"].total), sum(ordered))


def test_padding_rows_count_nothing_and_the_parts_add_up(small_model):
    params = transformer.init(small_model, jax.random.key(0))
    rng = np.random.default_rng(1)
    verdicts = pairs(rng)
    masked = verdicts | {"row_mask": np.array([1, 1, 0], np.float32)}
    alone, _ = verdict_loss(params, {k: v[:2] for k, v in verdicts.items()}, small_model, WORDS)
    padded, _ = verdict_loss(params, masked, small_model, WORDS)
    assert np.isclose(float(alone.total / alone.weight), float(padded.total / padded.weight), rtol=1e-6)
    roles = {k: v[:, 0] for k, v in pairs(rng).items()}
    both, _ = feedback_loss(params, {"roles": roles, "verdicts": verdicts}, small_model, WORDS)
    a, b = sft_loss(params, roles, small_model)[0], verdict_loss(params, verdicts, small_model, WORDS)[0]
    assert np.isclose(float(both.total), float(a.total / a.weight + b.total / b.weight), rtol=1e-6)
