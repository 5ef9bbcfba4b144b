"""Training that cannot work fails with a message: NaN weights, absurd learning rates, steps that train nothing."""

import dataclasses
import io
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from rlaif_jax.algorithms.advantages import AdvantageConfig
from rlaif_jax.algorithms.mean import Mean, Sum, mean_of
from rlaif_jax.config import TrainConfig
from rlaif_jax.data.records import Prompt
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.rewards.base import RewardResult
from rlaif_jax.sampling.decode import Decoded
from rlaif_jax.stages import rl as rl_stage
from rlaif_jax.trainers import loop
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.config import CriticConfig, RlConfig
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.optimizer import OptimizerConfig, make_optimizer
from rlaif_jax.trainers.rl import make_compute_advantages
from rlaif_jax.trainers.rl_types import RlBatch, RlNumbers
from rlaif_jax.trainers.sft import make_evaluate
from rlaif_jax.trainers.update import make_update
from tests.trainers import toy
from tests.trainers.states import create_state
from tests.trainers.test_update import _Counting


def _fit(folder, place, optimizer, steps=8, start=1.0, spoil=lambda step: False, console=None, **train):
    """Trains one matrix towards zero; the batch of a step that `spoil` names is NaN."""
    state, shardings = create_state(lambda: {"w": jnp.full((3, 3), start)}, {"w": (None, None)}, optimizer, place)
    update = make_update(lambda p, b: (mean_of((p["w"] * b["x"].mean()) ** 2), {}), optimizer, shardings)
    train = TrainConfig(steps=steps, log_every=1, **({"checkpoint_every": 2} | train))
    job = loop.Job("sft", folder, train, console or Console(quiet=True))

    def step(state, batch, number):
        return update(state, {"x": jnp.full(4, jnp.nan if spoil(number) else 1.0)})

    return loop.fit(job, state, shardings, _Counting(), step)


def test_a_stage_that_starts_from_nan_fails_and_saves_nothing(tmp_path, one_device):
    with pytest.raises(UserError, match="not finite after step 2, so it is not saved|trained nothing") as caught:
        _fit(tmp_path, one_device, optax.sgd(1e-2), start=jnp.nan)
    assert str(caught.value).startswith("sft: ") and "\n" not in str(caught.value)
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_an_infinite_learning_rate_saves_nothing(tmp_path, one_device):
    with pytest.raises(UserError, match=r"weights that are not finite after step 2, so it is not saved.*learning_rate"):
        _fit(tmp_path, one_device, optax.sgd(np.inf))
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_a_learning_rate_after_which_all_steps_are_skipped_fails(tmp_path, one_device):
    with pytest.raises(UserError, match=r"sft: the last 4 steps, up to step 5, trained nothing.*learning_rate"):
        _fit(tmp_path, one_device, optax.sgd(1e30))


def test_steps_without_effect_are_counted_over_a_restart(tmp_path, one_device):
    def killed(step):
        if step == 13:
            raise KeyboardInterrupt
        return step > 5

    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, one_device, optax.sgd(1e-2), 60, spoil=killed)
    with pytest.raises(UserError, match="the last 20 steps, up to step 25"):
        _fit(tmp_path, one_device, optax.sgd(1e-2), 60, spoil=lambda step: step > 5)


def test_some_skipped_steps_are_a_warning(tmp_path, one_device):
    text = io.StringIO()
    state = _fit(
        tmp_path, one_device, optax.sgd(1e-2), 30, spoil=lambda step: step % 10 < 7, console=Console(file=text, width=500)
    )  # fmt: skip
    assert int(state.skipped) == 21 and np.isfinite(state.params["w"]).all()
    assert text.getvalue().count("sft: step 1: steps skipped: 1 updates were skipped") == 1


def test_a_batch_without_a_valid_row_leaves_weights_and_moments_alone(one_device):
    optimizer = make_optimizer(OptimizerConfig(1e-2, "constant", warmup=0.0, weight_decay=0.5), 10)
    state, shardings = create_state(lambda: {"w": jnp.ones((3, 3))}, {"w": (None, None)}, optimizer, one_device)
    update = make_update(lambda p, b: (mean_of(p["w"] * b["x"], b["valid"]), {}), optimizer, shardings)
    state, _ = update(state, {"x": jnp.ones((3, 3)), "valid": jnp.ones((3, 3))})
    before = jax.device_get(state)
    state, metrics = update(state, {"x": jnp.ones((3, 3)), "valid": jnp.zeros((3, 3))})
    jax.tree.map(np.testing.assert_array_equal, (before.params, before.opt_state), jax.device_get((state.params, state.opt_state)))
    assert int(metrics["skipped"]) == 1 and float(metrics["grad_norm"]) == 0.0


def _invalid(samples):
    return RewardResult(np.full(len(samples), np.nan, np.float32), np.ones(len(samples), bool))


def test_a_batch_of_rewards_that_are_all_invalid_changes_nothing_and_is_logged(one_device):
    game = toy.Toy(dataclasses.replace(toy.GRPO, max_invalid_rewards=1.0), one_device, reward=_invalid)
    before = jax.device_get((game.state.params, game.state.opt_state))
    metrics = game.step(1)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get((game.state.params, game.state.opt_state)))
    assert metrics["reward_invalid"] == 1.0 and np.isnan(metrics["reward_p50"]) and metrics["skipped"] == 2


def test_one_sample_per_prompt_has_no_groups_to_be_without_signal():
    for cfg, there in ((dataclasses.replace(toy.GRPO, group_size=1, advantage=AdvantageConfig(baseline="none")), False),
                       (dataclasses.replace(toy.GRPO, group_size=2), True)):  # fmt: skip
        ones = np.ones((4, 3), np.float32)
        batch = RlBatch(tokens=ones.astype(int), segment_ids=ones.astype(int), positions=ones.astype(int), temperature=1.0,
                        old_logprobs=-ones, ref_logprobs=-ones)  # fmt: skip
        decoded = Decoded(tokens=ones.astype(int), mask=ones, logprobs=-ones, finished=np.ones(4, bool))
        numbers = RlNumbers(np.float32(0.1), np.zeros(3, np.float32))
        _, _, metrics = make_compute_advantages(cfg)(batch, decoded, np.zeros(4, np.float32), np.ones(4, bool), numbers)
        assert ("frac_reward_zero_std" in metrics) == there
    with pytest.raises(UserError, match="max_resamples .* group_size"):
        RlConfig(group_size=1, critic=CriticConfig(), max_resamples=2)
    with pytest.raises(UserError, match="sampling.temperature is 0"):
        RlConfig(sampling=dataclasses.replace(RlConfig().sampling, temperature=0.0))


def test_the_gap_between_sampler_and_trainer_is_logged_under_a_correction_too(one_device):
    cfg = dataclasses.replace(toy.GRPO, policy=dataclasses.replace(toy.GRPO.policy, rollout_correction="token_truncate"))
    game = toy.Toy(cfg, one_device)
    assert game.step(1)["rollout_mismatch"] < 1e-5
    plain = game.programs.sampler

    def off(*args):
        decoded = plain(*args)
        return decoded.replace(logprobs=(decoded.logprobs - 0.3) * decoded.mask)

    game = toy.Toy(cfg, one_device)
    cell = next(c for n, c in zip(game.rollout.__code__.co_freevars, game.rollout.__closure__, strict=True) if n == "sampler")
    cell.cell_contents = off
    assert game.step(1)["rollout_mismatch"] == pytest.approx(0.3, abs=1e-4)


def test_a_component_that_some_steps_lack_is_averaged_over_the_others():
    window = loop._Window()
    for row in ({"loss": 1.0}, {"loss": 3.0, "reward/rule": 4.0}):
        window.add(row)
    means = window.means()
    assert means["loss"] == 2.0 and means["reward/rule"] == 4.0


def test_a_held_out_score_that_is_no_number_is_never_the_best(tmp_path, one_device):
    optimizer = optax.sgd(1e-2)
    state, shardings = create_state(lambda: {"w": jnp.ones((3, 3))}, {"w": (None, None)}, optimizer, one_device)
    update = make_update(lambda p, b: (mean_of(p["w"] ** 2), {}), optimizer, shardings)
    train = TrainConfig(steps=3, checkpoint_every=1, log_every=1)
    job = loop.Job("rl", tmp_path, train, Console(quiet=True), lambda metrics: metrics["reward"])
    rewards = iter((0.1, float("nan"), float("nan")))
    loop.fit(job, state, shardings, _Counting(), lambda s, b, n: update(s, b), lambda s: {"reward": next(rewards)})
    assert Checkpoints(tmp_path / "checkpoints").selected_step("best") == 1
    assert [row["eval/reward"] for row in read_metrics(tmp_path / "metrics.jsonl") if "eval/reward" in row] == [0.1, None, None]


@pytest.mark.parametrize("sizes", [(5,), (4, 1), (3, 2), (1, 1, 1, 1, 1)])
def test_held_out_means_do_not_depend_on_the_batches(sizes, one_device):
    x, good = np.array([1.0, 2.0, 4.0, 8.0, 16.0], np.float32), np.array([1.0, 1.0, 0.0, 1.0, 0.0], np.float32)

    def loss(params, batch):
        parts = [mean_of(batch["x"], batch["good"]), mean_of(batch["x"], 1 - batch["good"])]
        total = Sum(jnp.stack([2 * parts[0].total, parts[1].total]), jnp.stack([p.weight for p in parts]))
        return Mean(total.value(), jnp.float32(1.0)), {"loss": total}

    cuts = np.cumsum((0, *sizes))
    batches = [{"x": x[a:b], "good": good[a:b]} for a, b in itertools.pairwise(cuts)]
    state = types.SimpleNamespace(params={}, frozen=None)
    found = make_evaluate(loss, lambda: batches, one_device)(state)
    assert found["loss"] == pytest.approx(2 * (1 + 2 + 8) / 3 + (4 + 16) / 2)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_held_out_prompt_has_its_own_noise_for_every_batch_size(size, tmp_path):
    tokenizer = Tokenizer.train(["祝福"], 300, tmp_path)
    records = [Prompt(f"写祝福{i}") for i in range(7)]
    cfg = RlConfig(TrainConfig(batch_size=size), group_size=3, max_prompt_tokens=200)
    seen = {}

    def sampler(params, tokens, segment_ids, seed, step, sampling, first):
        for row in range(len(tokens)):
            text = tokenizer.decode(tokens[row][segment_ids[row] > 0].tolist())
            seen.setdefault(text, (seed, step, [first + row * 3 + k for k in range(3)]))
        rows = len(tokens) * 3
        return Decoded(tokens=np.zeros((rows, 1), np.int32), mask=np.zeros((rows, 1), np.float32),
                       logprobs=np.zeros((rows, 1), np.float32), finished=np.ones(rows, bool))  # fmt: skip

    def reward(samples):
        return RewardResult(np.arange(len(samples), dtype=np.float32), np.ones(len(samples), bool))

    trainable = types.SimpleNamespace(full_params=lambda frozen, params: params)
    programs = types.SimpleNamespace(rl=cfg, trainable=trainable, sampler=sampler)
    models = types.SimpleNamespace(tokenizer=tokenizer)
    evaluate = rl_stage._evaluation(programs, reward, records, models=models, sampling=None, seed=9)
    assert np.isfinite(evaluate(types.SimpleNamespace(frozen=None, params=None))["reward"])
    assert list(seen.values()) == [(9, 0, [i * 3, i * 3 + 1, i * 3 + 2]) for i in range(7)]
