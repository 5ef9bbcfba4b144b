"""A toy RL task without text: count how often one token occurs. Policy, critic and loop are the real ones."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.data.records import Prompt
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.rewards.base import RewardResult
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sharding import Placement
from rlaif_jax.trainers import rl, rollout
from rlaif_jax.trainers.config import CriticConfig, RlConfig, ShapingConfig, TrainConfig
from rlaif_jax.trainers.optimizer import OptimizerConfig
from rlaif_jax.trainers.rl_programs import build
from rlaif_jax.trainers.rl_types import RlPrograms
from rlaif_jax.trainers.trainable import Full

MODEL = ModelConfig(vocab_size=16, width=32, ffn=64, layers=1, heads=4, kv_heads=2, head_dim=8)
LENGTH, WANTED = 8, 7
GRPO = RlConfig(
    TrainConfig(steps=150, batch_size=8, optimizer=OptimizerConfig(1e-2, "constant", weight_decay=0.0)), group_size=4,
    sampling=SamplingConfig(max_tokens=LENGTH), num_minibatches=2, shaping=ShapingConfig(missing_eos_penalty=0.0),
)  # fmt: skip
_CRITIC = CriticConfig(OptimizerConfig(1e-2, "constant", weight_decay=0.0), init="policy")
PPO = dataclasses.replace(GRPO, critic=_CRITIC, num_epochs=2)


class Letters:
    """A tokenizer that writes each token as a letter."""

    def decode(self, ids):
        return "".join(chr(ord("a") + i) for i in ids)


def share_of_wanted(samples) -> RewardResult:
    """The share of places that hold the wanted token; 1.0 is the best there is."""
    values = np.array([e.response.count(chr(ord("a") + WANTED)) / LENGTH for e in samples], np.float32)
    return RewardResult(values, np.ones(len(values), bool))


@functools.lru_cache
def programs(cfg: RlConfig, place: Placement) -> RlPrograms:
    """What is compiled, once for all seeds and rewards."""
    return build(MODEL, cfg, Full(), place, pad_id=0)


@functools.lru_cache
def policy(seed: int, place: Placement):
    """Fresh weights; the functions that use them copy them first."""
    start = partial(transformer.init, MODEL)
    shardings = place.tree(transformer.logical_axes(MODEL), jax.eval_shape(start, jax.random.key(0)))
    return jax.jit(start, out_shardings=shardings)(jax.random.key(seed))


class Toy:
    """State and step of the toy task under some settings."""

    def __init__(self, cfg: RlConfig, place: Placement, seed: int = 0, reward=share_of_wanted, next_prompts=None):
        self.programs = programs(cfg, place)

        def weights():
            return jax.tree.map(jnp.copy, policy(seed, place))

        self.state, _ = self.programs.init(weights(), jax.random.key(seed))
        tokens = np.random.default_rng(seed).integers(1, 16, (cfg.train.batch_size, 3)).astype(np.int32)
        self.prompts = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "row": np.arange(len(tokens))}
        records, sampling = [Prompt(f"{i}") for i in range(len(tokens))], traced(cfg.sampling, ())
        self.rollout = rollout.make_rollout(
            self.programs.sampler, reward, records=records, tokenizer=Letters(), sampling=sampling, rl=cfg, seed=seed
        )  # fmt: skip
        refill = rollout.make_refill(self.rollout, next_prompts or (lambda: self.prompts), cfg) if cfg.max_resamples else None
        reference = weights() if rl.needs_reference(cfg, self.programs.trainable) else None
        self.samples = []
        self._step = rl.make_step(
            self.programs, self.rollout, sampling=sampling, seed=seed, reference=reference, refill=refill,
            on_samples=lambda step, samples, result: self.samples.append((samples, result)),
        )  # fmt: skip

    def step(self, number: int) -> dict[str, float]:
        """One RL step; returns its metrics as floats."""
        self.state, metrics = self._step(self.state, self.prompts, number)
        return {name: float(value) for name, value in metrics.items()}
