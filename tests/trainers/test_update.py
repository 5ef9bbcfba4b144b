"""The update factory: accumulation is exact, bad steps are skipped, decay spares norms; resume restores everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.algorithms.mean import mean_of
from rlaif_jax.config import TrainConfig
from rlaif_jax.models import transformer
from rlaif_jax.trainers import loop
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.optimizer import OptimizerConfig, decay_mask, make_optimizer, schedule
from rlaif_jax.trainers.sft import sft_loss
from rlaif_jax.trainers.update import make_update
from tests.trainers.states import create_state


def _batch(rows=8, length=12, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, length + 1, rows)
    segments = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
    loss_mask = segments * (np.arange(length) >= 2)
    return {
        "tokens": rng.integers(1, 128, (rows, length)).astype(np.int32) * segments, "segment_ids": segments,
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)), "loss_mask": loss_mask.astype(np.float32),
    }


def _trainer(cfg, place, accumulation=1, rate=1e-2):
    optimizer = make_optimizer(OptimizerConfig(rate, warmup=0.0), 100)
    state, shardings = create_state(
        lambda: transformer.init(cfg, jax.random.key(0)), transformer.logical_axes(cfg), optimizer, place
    )
    return state, shardings, make_update(lambda p, b: sft_loss(p, b, cfg), optimizer, shardings, accumulation)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_is_the_exact_token_mean(small_model, one_device, accumulation):
    """Rows differ in length, so a mean of micro-batch means would differ."""
    batch, results = _batch(), []
    for pieces in (1, accumulation):
        state, _, update = _trainer(small_model, one_device, pieces)
        results.append(update(state, batch))
    np.testing.assert_allclose(results[0][1]["loss"], results[1][1]["loss"], rtol=1e-6)
    np.testing.assert_allclose(results[0][1]["grad_norm"], results[1][1]["grad_norm"], rtol=1e-5)


def test_permuting_rows_changes_nothing_beyond_rounding(small_model, one_device):
    batch, order = _batch(), np.random.default_rng(1).permutation(8)
    losses = []
    for b in (batch, {k: v[order] for k, v in batch.items()}):
        state, _, update = _trainer(small_model, one_device)
        losses.append(float(update(state, b)[1]["loss"]))
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_but_its_count(small_model, one_device):
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state, shardings = create_state(
        lambda: {"w": jnp.ones((3, 3))}, {"w": (None, None)}, optimizer, one_device
    )
    update = make_update(lambda p, b: (mean_of(p["w"] * b["x"]), {}), optimizer, shardings)
    before = np.asarray(state.params["w"])
    state, metrics = update(state, {"x": np.full((3, 3), np.nan, np.float32)})
    np.testing.assert_array_equal(state.params["w"], before)
    assert int(state.skipped) == 1 and int(state.step) == 1 and float(metrics["skipped"]) == 1
    state, _ = update(state, {"x": np.ones((3, 3), np.float32)})
    assert (np.asarray(state.params["w"]) < before).all() and int(state.skipped) == 1


def test_a_batch_without_targets_has_no_loss_and_no_gradient(small_model, one_device):
    state, _, update = _trainer(small_model, one_device)
    batch = _batch()
    batch["loss_mask"][:] = 0
    _, metrics = update(state, batch)
    assert float(metrics["loss"]) == 0.0 and float(metrics["grad_norm"]) == 0.0


def test_only_the_response_and_its_end_are_trained(small_model):
    batch = _batch()
    params = transformer.init(small_model, jax.random.key(0))
    loss = sft_loss(params, batch, small_model)[0]
    assert float(loss.weight) == batch["loss_mask"][:, 1:].sum()
    other = {**batch, "loss_mask": batch["loss_mask"].copy()}
    last = np.flatnonzero(batch["segment_ids"][0])[-1]
    other["loss_mask"][0, last] = 0.0  # the end token: leaving it out must show
    assert float(sft_loss(params, other, small_model)[0].total) != float(loss.total)


def test_sharded_state_lies_as_the_rules_say(small_model, eight_devices):
    state, _, _ = _trainer(small_model, eight_devices)
    assert state.params["layers"]["q"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    down = state.params["layers"]["down"]
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == down.shape]
    assert len(moments) == 2 and all(m.sharding == down.sharding for m in moments)


def test_decay_spares_norms_biases_and_heads():
    mask = decay_mask({"embed": 0, "final_norm": 0, "layers": {"q": 0, "q_bias": 0, "attn_norm": 0}, "score": 0})
    assert mask == {"embed": True, "final_norm": False, "layers": {"q": True, "q_bias": False, "attn_norm": False}, "score": False}


def test_schedule_warms_up_and_ends_at_its_share():
    rate = schedule(OptimizerConfig(1e-3, "cosine", warmup=0.1, final_ratio=0.1), 100)
    np.testing.assert_allclose([rate(0), rate(9), rate(100)], [1e-4, 1e-3, 1e-4], rtol=1e-5)
    flat = schedule(OptimizerConfig(1e-3, "constant", warmup=0.1), 100)
    np.testing.assert_allclose(flat(80), 1e-3)


class _Counting:
    """Batches that are numbers, with a position."""

    def __init__(self):
        self.at = 0

    def __next__(self):
        self.at += 1
        return {"x": np.full((3, 3), self.at, np.float32)}

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def test_fit_resumes_in_the_middle_with_the_same_bytes(tmp_path, one_device):
    optimizer = make_optimizer(OptimizerConfig(1e-2), 10)

    def run(folder, steps):
        state, shardings = create_state(lambda: {"w": jnp.ones((3, 3))}, {"w": (None, None)}, optimizer, one_device)
        update = make_update(lambda p, b: (mean_of(jnp.sin(p["w"] * b["x"])), {}), optimizer, shardings)
        train = TrainConfig(steps=steps, log_every=1, checkpoint_every=3)
        stage = loop.Job("toy", folder, train, Console(quiet=True))
        return loop.fit(stage, state, shardings, _Counting(), lambda s, b, _: update(s, b))

    whole = run(tmp_path / "whole", 10)
    run(tmp_path / "parts", 7)
    parts = run(tmp_path / "parts", 10)
    np.testing.assert_array_equal(whole.params["w"], parts.params["w"])
    assert [r["step"] for r in read_metrics(tmp_path / "parts" / "metrics.jsonl")] == list(range(1, 11))
