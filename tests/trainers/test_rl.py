"""RL steps: PPO and GRPO learn, and what a step must and must not do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.algorithms.advantages import AdvantageConfig
from rlaif_jax.algorithms.kl import KlConfig
from rlaif_jax.algorithms.policy import PolicyConfig, policy_loss
from rlaif_jax.errors import UserError
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.rewards.base import RewardResult
from rlaif_jax.sampling.filters import SamplingConfig
from rlaif_jax.trainers.config import CriticConfig, RlConfig, ShapingConfig, TrainConfig
from rlaif_jax.trainers.rl import needs_reference, running_stats, scoring_models
from rlaif_jax.trainers.rl_types import RlNumbers
from rlaif_jax.trainers.trainable import Full, Lora
from tests.trainers.toy import GRPO, LENGTH, PPO, Toy, programs, share_of_wanted

NUMBERS = RlNumbers(np.float32(0.001), np.zeros(3, np.float32))


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.parametrize("cfg", [GRPO, pytest.param(PPO, marks=pytest.mark.slow)], ids=["grpo", "ppo"])
def test_the_counting_task_is_learned(cfg, seed, one_device):
    toy, rewards = Toy(cfg, one_device, seed), []
    for number in range(1, 200):
        rewards.append(toy.step(number)["reward"])
        if min(rewards[-3:]) >= 0.95 and len(rewards) > 3:
            break
    assert len(rewards) > 3 and min(rewards[-3:]) >= 0.95, f"best reward is 1.0; after {len(rewards)} steps: {rewards[-5:]}"


VARIANTS = {
    "RLOO": {"advantage": AdvantageConfig("leave_one_out", "none"), "kl": KlConfig(0.001, "reward", "k1")},
    "REINFORCE++": {"advantage": AdvantageConfig("none", "none", "tokens"), "kl": KlConfig(0.001, "reward", "k1"), "group_size": 1},
    "Dr. GRPO": {"advantage": AdvantageConfig(scale="none"), "policy": PolicyConfig(aggregation="fixed_length")},
    "GSPO": {"policy": PolicyConfig(importance_level="sequence", aggregation="sequence_mean", clip_low=0.05, clip_high=0.05)},
    "CISPO": {"policy": PolicyConfig(loss="cispo", clip_low=1.0, clip_high=4.0)},
    "SAPO": {"policy": PolicyConfig(loss="sapo")},
    "corrected, adaptive, refreshed": {
        "policy": PolicyConfig(rollout_correction="token_truncate", dual_clip=3.0, entropy_coefficient=1e-3),
        "kl": KlConfig(0.01, estimator="k1", unbiased=True, target=0.5, ref_sync_steps=5),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_raises_the_reward(name, one_device):
    options = dict(VARIANTS[name])
    group = options.pop("group_size", 4)
    train = dataclasses.replace(GRPO.train, batch_size=8 * 4 // group)
    toy = Toy(dataclasses.replace(GRPO, train=train, group_size=group, **options), one_device)
    rewards = [toy.step(n)["reward"] for n in range(1, 41)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.15, rewards


@pytest.mark.parametrize("cfg", [GRPO, PPO], ids=["grpo", "ppo"])
def test_the_first_update_has_ratio_one_and_no_kl_under_filters(cfg, one_device):
    """Sampler, reference and trainer agree at temperature 0.6 with top-p 0.9: one pass, one update, the same weights."""
    sampling = SamplingConfig(temperature=0.6, top_p=0.9, max_tokens=LENGTH)
    toy = Toy(dataclasses.replace(cfg, sampling=sampling, num_minibatches=1, num_epochs=1, kl=KlConfig(0.01)), one_device)
    metrics = toy.step(1)
    assert abs(metrics["ratio_max"] - 1) < 1e-5 and abs(metrics["ratio_min"] - 1) < 1e-5
    assert abs(metrics["kl"]) < 1e-9 and abs(metrics["kl_sequence"]) < 1e-4 and metrics["rollout_mismatch"] < 1e-5
    assert metrics["clip_ratio/low"] == metrics["clip_ratio/high"] == 0


def _advantages(toy, rewards, valid):
    """(full batch, numbers, metrics) of the first rollout under these rewards, and the rollout."""
    rolled = toy.rollout(toy.state.params, toy.prompts, 1)
    models = scoring_models(toy.programs.rl, toy.programs.trainable, toy.state, toy.state.params)
    batch = toy.programs.score_rollout(
        models, toy.prompts["tokens"], toy.prompts["segment_ids"], rolled.decoded, np.float32(1.0)
    )  # fmt: skip
    return toy.programs.compute_advantages(batch, rolled.decoded, rewards, valid, NUMBERS), rolled


def test_a_fractional_reward_arrives_unchanged(one_device):
    toy = Toy(dataclasses.replace(GRPO, advantage=AdvantageConfig(scale="none")), one_device)
    rewards = np.linspace(0.05, 0.95, 32).astype(np.float32)
    (batch, *_), _ = _advantages(toy, rewards, np.ones(32, bool))
    centred = rewards.reshape(8, 4) - rewards.reshape(8, 4).mean(1, keepdims=True)
    np.testing.assert_allclose(batch.advantages[:, 0], centred.reshape(-1), atol=1e-6)


@pytest.mark.parametrize("cfg", [GRPO, PPO], ids=["grpo", "ppo"])
def test_a_masked_reward_changes_nothing_else(cfg, one_device):
    """The row without verdict, whatever its number, counts nowhere: its group is one smaller, other groups stay the same."""
    cfg = dataclasses.replace(cfg, critic=cfg.critic and dataclasses.replace(cfg.critic, whiten=False))
    toy, rewards, valid = Toy(cfg, one_device), np.linspace(0, 1, 32).astype(np.float32), np.ones(32, bool)
    (whole, *_), _ = _advantages(toy, rewards, valid)
    valid[5] = False
    found = []
    for lie in (0.0, 1e6, np.nan):
        rewards[5] = lie
        (batch, *_), _ = _advantages(toy, rewards, valid)
        found.append(np.asarray(batch.advantages))
        assert not np.asarray(batch.mask[5]).any() and not found[-1][5].any()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    others = np.arange(32) // 4 != 1
    np.testing.assert_array_equal(found[0][others], np.asarray(whole.advantages)[others])


def test_eos_gets_a_gradient(one_device):
    """The end token is a token like any other: its log-prob has an advantage and a place in the mask."""
    toy = Toy(GRPO, one_device)
    (batch, *_), rolled = _advantages(toy, np.linspace(0, 1, 32).astype(np.float32), np.ones(32, bool))
    ended = rolled.decoded.replace(mask=rolled.decoded.mask.at[0, 4:].set(0.0))  # a response that ends at its fifth token
    scored = batch.replace(mask=None, advantages=None, kl_coefficient=None)
    again, *_ = toy.programs.compute_advantages(
        scored, ended, np.linspace(0, 1, 32).astype(np.float32), np.ones(32, bool), NUMBERS
    )  # fmt: skip
    assert float(again.mask[0, 3]) == 1 and float(again.advantages[0, 3]) != 0
    assert float(again.mask[0, 4]) == 0 and float(again.advantages[0, 4]) == 0

    def loss(logp):
        loss, _ = policy_loss(
            logp, jnp.zeros_like(logp), GRPO.policy, GRPO.kl, mask=again.mask, old_logprobs=again.old_logprobs,
            advantages=again.advantages, ref_logprobs=again.ref_logprobs, kl_coefficient=again.kl_coefficient,
        )  # fmt: skip
        return loss.value()

    grad = jax.grad(loss)(again.old_logprobs)
    assert float(grad[0, 3]) != 0 and not np.asarray(grad[0, 4:]).any()


@pytest.mark.parametrize("cfg", [GRPO, PPO], ids=["grpo", "ppo"])
def test_micro_batches_and_order_change_nothing_beyond_rounding(cfg, one_device):
    cfg = dataclasses.replace(cfg, num_minibatches=1, num_epochs=1)
    pieces = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, grad_accumulation=4))
    results = []
    for settings, order in ((cfg, np.arange(32)), (pieces, np.arange(32)), (cfg, np.random.default_rng(0).permutation(32))):
        toy = Toy(settings, one_device)
        (batch, *_), _ = _advantages(toy, np.linspace(0, 1, 32).astype(np.float32), np.ones(32, bool))
        shuffled = jax.tree.map(lambda x, order=order: x[order] if x.ndim else x, batch)
        _, metrics = toy.programs.update(toy.state, shuffled, 0, 1)
        results.append({k: float(metrics[k]) for k in ("loss", "grad_norm", "ratio_max", "entropy")})
    for other in results[1:]:
        np.testing.assert_allclose(list(other.values()), list(results[0].values()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cfg", [pytest.param(GRPO, marks=pytest.mark.slow), PPO], ids=["grpo", "ppo"])
def test_eight_devices_learn_as_one_does(cfg, one_device, eight_devices):
    toys = [Toy(dataclasses.replace(cfg, kl=KlConfig(0.01)), place) for place in (one_device, eight_devices)]
    for number in range(1, 6):
        one, eight = (toy.step(number) for toy in toys)
        for name in ("loss", "reward", "kl", "entropy"):
            np.testing.assert_allclose(one[name], eight[name], atol=1e-5, err_msg=f"step {number}: {name}")


def test_groups_without_signal_are_refilled(one_device):
    """Prompts 0 to 5 always get equal rewards; refills bring further batches until eight groups differ."""
    cfg, served = dataclasses.replace(GRPO, max_resamples=4), []

    def reward(samples):
        flat = np.array([int(e.prompt) < 6 for e in samples])
        return RewardResult(np.where(flat, 0.5, share_of_wanted(samples).values).astype(np.float32), np.ones(len(flat), bool))

    toy = Toy(cfg, one_device, reward=reward, next_prompts=lambda: served.append(1) or toy.prompts)
    metrics = toy.step(1)
    assert 2 <= metrics["refills"] <= 4 and len(served) == metrics["refills"]
    assert metrics["frac_reward_zero_std"] >= 0.75  # measured over all that was sampled
    toy.samples.clear()
    toy.step(20)
    prompts = [int(e.prompt) for e in toy.samples[0][0]]
    assert len(prompts) == 32 and sum(p >= 6 for p in prompts) >= 20  # those with signal were taken first


@pytest.mark.slow
def test_the_policy_rests_while_the_critic_warms_up_and_after_kl_stop(one_device):
    warm = dataclasses.replace(PPO, critic=dataclasses.replace(PPO.critic, warmup=2))
    toy = Toy(warm, one_device)
    start, critic = (jax.device_get(t) for t in (toy.state.params, toy.state.critic.params))
    toy.step(1), toy.step(2)
    jax.tree.map(np.testing.assert_array_equal, start, jax.device_get(toy.state.params))
    assert int(toy.state.step) == 0 and int(toy.state.critic.step) == 8
    assert not np.array_equal(critic["head"]["score"], toy.state.critic.params["head"]["score"])
    toy.step(3)
    assert int(toy.state.step) == 4
    stopped = Toy(dataclasses.replace(GRPO, num_epochs=4, kl_early_stop=1e-9), one_device)
    stopped.step(1)
    assert 0 < int(stopped.state.step) < 8


def test_the_reference_is_refreshed_and_the_coefficient_adapts(one_device):
    toy = Toy(dataclasses.replace(GRPO, kl=KlConfig(0.1, target=1.0, horizon=1000.0, ref_sync_steps=2)), one_device)
    toy.step(1)
    assert not np.array_equal(toy.state.reference["embed"], toy.state.params["embed"])
    # At the first step the KL is 0, far below its target: 32 samples of 1,000 take off a fifth of 3.2 %.
    np.testing.assert_allclose(toy.state.kl_coefficient, 0.1 * (1 - 0.2 * 32 / 1000), rtol=1e-6)
    toy.step(2)
    np.testing.assert_array_equal(toy.state.reference["embed"], toy.state.params["embed"])


def test_when_weights_of_a_reference_are_kept():
    """(beside the state, within it) with all weights trained, and with an adapter, whose base is the reference."""
    expected = {KlConfig(0.1): (True, False), KlConfig(0.1, ref_sync_steps=2): (False, True), KlConfig(0.0): (False, False),
                KlConfig(0.0, ref_sync_steps=2): (False, False)}  # fmt: skip
    for kl, (beside, within) in expected.items():
        cfg = dataclasses.replace(GRPO, kl=kl)
        assert needs_reference(cfg, Full()) is beside and kl.refreshed is within
        assert not needs_reference(cfg, Lora(LoraConfig()))


def test_a_refresh_without_a_kl_term_keeps_no_reference(one_device):
    toy = Toy(dataclasses.replace(GRPO, kl=KlConfig(0.0, ref_sync_steps=1)), one_device)
    toy.step(1), toy.step(2)
    assert toy.state.reference is None


@pytest.mark.parametrize("cfg", [
    GRPO, dataclasses.replace(PPO, kl=KlConfig(0.1, "reward", "k1", ref_sync_steps=2)),
], ids=["grpo", "ppo, refreshed"])  # fmt: skip
def test_the_abstract_state_is_that_of_a_real_one(cfg, eight_devices):
    """Shapes, dtypes and shardings, before and after a step."""
    toy = Toy(cfg, eight_devices)
    abstract = programs(cfg, eight_devices).abstract
    for number in (1, 2):
        assert jax.tree.structure(toy.state) == jax.tree.structure(abstract)
        for real, planned in zip(jax.tree.leaves(toy.state), jax.tree.leaves(abstract), strict=True):
            assert (real.shape, real.dtype) == (planned.shape, planned.dtype)
            assert real.sharding.is_equivalent_to(planned.sharding, real.ndim)
        toy.step(number)


def test_running_statistics_are_those_of_all_values_so_far():
    stats, seen = np.zeros(3, np.float32), []
    for size in (4, 7, 1):
        x = np.random.default_rng(size).normal(3, 2, size).astype(np.float32)
        valid = np.arange(size) != 1
        seen += x[valid].tolist()
        stats = running_stats(stats, x, valid)
    np.testing.assert_allclose(stats, [len(seen), np.mean(seen), np.var(seen) * len(seen)], rtol=1e-5)


def test_shaping_normalises_then_clips_and_penalises_length(one_device):
    cfg = dataclasses.replace(GRPO, shaping=ShapingConfig(0.0, 4, 0.5, True, 1.0), advantage=AdvantageConfig("none", "none"))
    toy, rewards = Toy(cfg, one_device), np.linspace(-2, 2, 32).astype(np.float32)
    (batch, numbers, _), _ = _advantages(toy, rewards, np.ones(32, bool))
    lowered = rewards - 0.5  # every toy response runs to the limit
    expected = np.clip((lowered - lowered.mean()) / lowered.std(ddof=1), -1, 1)
    np.testing.assert_allclose(batch.advantages[:, 0], expected, atol=1e-4)
    np.testing.assert_allclose(numbers.reward_stats[:2], [32, lowered.mean()], atol=1e-5)


@pytest.mark.parametrize("change, said", [
    (lambda: RlConfig(group_size=1), "without a critic it must be at least 2"),
    (lambda: RlConfig(TrainConfig(batch_size=3), num_minibatches=5), "cannot be split"),
    (lambda: RlConfig(shaping=ShapingConfig(overlong_buffer=64)), "overlong_buffer"),
    (lambda: CriticConfig(lam=1.5), "lam is 1.5"),
    (lambda: CriticConfig(init="thin air"), "critic.init"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        change()


def test_a_group_of_one_is_fine_for_ppo():
    assert RlConfig(group_size=1, critic=CriticConfig()).updates == RlConfig().train.steps * 2
