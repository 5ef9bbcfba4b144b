"""A toy RL task without text: count how often one token occurs. Policy, critic and loop are the real ones."""

import dataclasses
import functools
from functools import partial

import jax
import numpy as np

from rlaif_jax.data.records import Prompt
from rlaif_jax.models import heads, transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.rewards.base import RewardResult
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.sampler import make_sampler
from rlaif_jax.sharding import Placement
from rlaif_jax.trainers import rl, rollout
from rlaif_jax.trainers.config import CriticConfig, RlConfig, ShapingConfig, TrainConfig
from rlaif_jax.trainers.learn import make_learn
from rlaif_jax.trainers.optimizer import OptimizerConfig, make_optimizer
from rlaif_jax.trainers.update import make_update_fn, state_of

MODEL = ModelConfig(vocab_size=16, width=32, ffn=64, layers=1, heads=4, kv_heads=2, head_dim=8)
LENGTH, WANTED = 8, 7
GRPO = RlConfig(
    TrainConfig(steps=150, batch_size=8, optimizer=OptimizerConfig(1e-2, "constant", weight_decay=0.0)), group=4,
    sampling=SamplingConfig(max_tokens=LENGTH), minibatches=2, shaping=ShapingConfig(unfinished_penalty=0.0),
)  # fmt: skip
PPO = dataclasses.replace(GRPO, critic=CriticConfig(OptimizerConfig(1e-2, "constant", weight_decay=0.0), init="policy"), epochs=2)


class Letters:
    """A tokenizer that writes each token as a letter."""

    def decode(self, ids):
        return "".join(chr(ord("a") + i) for i in ids)


def share_of_wanted(samples) -> RewardResult:
    """The share of places that hold the wanted token; 1.0 is the best there is."""
    values = np.array([e.response.count(chr(ord("a") + WANTED)) / LENGTH for e in samples], np.float32)
    return RewardResult(values, np.ones(len(values), bool))


@functools.lru_cache
def programs(cfg: RlConfig, place: Placement) -> dict:
    """What is compiled, once for all seeds and rewards: make_state, sampler, annotate, experience, learn."""
    axes, optimizer = transformer.logical_axes(MODEL), make_optimizer(cfg.train.optimizer, cfg.updates)
    start = partial(transformer.init, MODEL)
    shardings = place.tree(axes, jax.eval_shape(start, jax.random.key(0)))
    policy = jax.jit(start, out_shardings=shardings)
    refreshed = cfg.kl.refresh > 0
    numbers = {"kl_coefficient": np.float32(cfg.kl.coefficient), "reward_stats": np.zeros(3, np.float32)}
    critic_update = critic_optimizer = None
    if cfg.critic is not None:
        critic_optimizer = make_optimizer(cfg.critic.optimizer, cfg.updates)
        critic_update = make_update_fn(partial(rl.critic_loss, cfg=MODEL, rl=cfg, place=place), critic_optimizer)

    def make_state(seed: int) -> tuple[rl.RlState, rl.RlState]:
        key = jax.random.key(seed)
        own, own_at = state_of(policy(key), axes, optimizer, place)
        critic = critic_at = None
        if critic_optimizer is not None:
            params = {"model": policy(key), "head": heads.zero_head(MODEL)}
            critic, critic_at = state_of(params, heads.logical_axes(MODEL), critic_optimizer, place)
        state = rl.RlState(**own, critic=critic, reference=policy(key) if refreshed else None, **numbers)
        at = rl.RlState(**own_at, critic=critic_at, reference=own_at.params if refreshed else None,
                        **dict.fromkeys(numbers, place.replicated))  # fmt: skip
        return jax.device_put(state, at), at

    update = make_update_fn(partial(rl.rl_loss, cfg=MODEL, rl=cfg, place=place), optimizer, cfg.train.accumulation)
    return {
        "make_state": make_state, "policy": policy,
        "sampler": make_sampler(MODEL, axes, place, group=cfg.group, max_tokens=LENGTH, pad_id=0),
        "annotate": rl.make_annotate(MODEL, cfg, place), "experience": rl.make_experience(cfg),
        "learn": make_learn(update, critic_update, cfg, make_state(0)[1], place),
    }  # fmt: skip


class Toy:
    """State and step of the toy task under some settings."""

    def __init__(self, cfg: RlConfig, place: Placement, seed: int = 0, reward=share_of_wanted, next_prompts=None):
        made = programs(cfg, place)
        self.state, _ = made["make_state"](seed)
        self.annotate, self.experience, self.learn = (made[k] for k in ("annotate", "experience", "learn"))
        tokens = np.random.default_rng(seed).integers(1, 16, (cfg.train.batch_size, 3)).astype(np.int32)
        self.prompts = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "row": np.arange(len(tokens))}
        records, sampling = [Prompt(f"{i}") for i in range(len(tokens))], traced(cfg.sampling, ())
        self.rollout = rollout.make_rollout(made["sampler"], reward, records, Letters(), sampling, cfg, seed)
        refill = rollout.make_refill(self.rollout, next_prompts or (lambda: self.prompts), cfg) if cfg.refills else None
        reference = made["policy"](jax.random.key(seed)) if cfg.kl.coefficient > 0 else None
        self.samples = []
        self._step = rl.make_step(
            self.rollout, refill, self.annotate, self.experience, self.learn, reference, sampling, cfg, seed,
            lambda step, samples, result: self.samples.append((samples, result)),
        )  # fmt: skip

    def step(self, number: int) -> dict[str, float]:
        """One RL step; returns its metrics as floats."""
        self.state, metrics = self._step(self.state, self.prompts, number)
        return {name: float(value) for name, value in metrics.items()}
