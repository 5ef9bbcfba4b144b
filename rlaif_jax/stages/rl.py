"""The stage of an arm: reinforcement learning against its reward."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from rlaif_jax.config import RlConfig
from rlaif_jax.config.stages import REWARD, SFT, Stage
from rlaif_jax.data import pipelines
from rlaif_jax.data.rows import prompt_rows
from rlaif_jax.data.streams import stream
from rlaif_jax.rewards.base import RewardFn, checked
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels
from rlaif_jax.runs.rewards import RunRewards
from rlaif_jax.runs.samples import SampleTable
from rlaif_jax.sampling import filters
from rlaif_jax.sharding.memory import require_host_memory
from rlaif_jax.trainers import loop, rl, rl_programs, rollout
from rlaif_jax.trainers.offload import to_host
from rlaif_jax.trainers.rl_types import RlPrograms, RlState


def require_memory(x: Run, name: str) -> None:
    """UserError if the stage offloads to host memory and the mesh's devices cannot. Called before any stage runs."""
    cfg = x.cfg.rl_of(name)
    for setting, wanted in (("offload_optimizer", cfg.offload_optimizer), ("offload_reference", cfg.offload_reference)):
        if wanted:
            require_host_memory(x.place.mesh, f"rl.{setting}")


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """RL of one arm from the SFT policy, which is also the KL reference, against the arm's reward.

    All arms use the same random streams: the same prompts in the same order, with the same sampling noise.
    """
    data, models, cfg, seed, name = RunData(x), RunModels(x), x.cfg.rl_of(stage.name), x.cfg.seed, stage.name
    tokenizer, cfg = models.tokenizer, _resolved(x, cfg)
    train, held_out, facts = data.rl_prompts(cfg.eval_prompts)
    sampling = filters.traced(cfg.sampling, tokenizer.eos_ids)
    programs = rl_programs.build(models.config, cfg, models.trainable, x.place, pad_id=tokenizer.pad_id)
    state, shardings = _start(x, models, programs)
    reward = RunRewards(x, models, RunLlms(x, models, name)).arm(name, state.frozen)
    rows = prompt_rows(train, tokenizer, cfg.max_prompt_tokens)
    batches = pipelines.train_batches(rows, batch_size=cfg.train.batch_size, seed=stream(seed, "rl/prompts"))
    sample = rollout.make_rollout(
        programs.sampler, reward, records=train, tokenizer=tokenizer, sampling=sampling, rl=cfg, seed=stream(seed, "rl/rollout")
    )  # fmt: skip
    step = rl.make_step(
        programs, sample, sampling=sampling, seed=stream(seed, "rl/minibatches"), reference=_reference(models, programs),
        refill=rollout.make_refill(sample, lambda: next(batches), cfg) if cfg.max_resamples else None,
        on_samples=SampleTable(x, name).show,
    )  # fmt: skip
    evaluate = _evaluation(programs, reward, held_out, models=models, sampling=sampling, seed=stream(seed, "rl/held-out"))
    job = loop.Job(
        name, x.folder(name), cfg.train, x.console, lambda metrics: metrics["reward"], x.cfg.logging.wandb_project,
        partial(x.on_log, name),
    )  # fmt: skip
    loop.fit(job, state, shardings, batches, step, evaluate)
    return facts | models.selected(name)


def _resolved(x: Run, cfg: RlConfig) -> RlConfig:
    """The settings with the policy's loss as a function, where the config names one of the user's."""
    if callable(cfg.policy.loss) or ":" not in cfg.policy.loss:
        return cfg
    return dataclasses.replace(cfg, policy=dataclasses.replace(cfg.policy, loss=x.resolve(cfg.policy.loss)))


def _start(x: Run, models: RunModels, programs: RlPrograms) -> tuple[RlState, RlState]:
    """State and shardings, from the weights of earlier stages."""
    critic = None
    if programs.rl.critic is not None and programs.rl.critic.init == "reward":
        x.require(REWARD.name)
        critic = models.trained(REWARD.name)
    return programs.init(models.policy(SFT.name), jax.random.key(stream(x.cfg.seed, "rl/adapter")), critic)


def _reference(models: RunModels, programs: RlPrograms) -> Any:
    """The SFT policy's weights, on the devices or in the host's memory; None where the state holds what is needed."""
    if not rl.needs_reference(programs.rl, programs.trainable):
        return None
    reference = models.policy(SFT.name)
    return to_host(reference) if programs.rl.offload_reference else reference


def _evaluation(programs: RlPrograms, reward: RewardFn, records: list, *, models: RunModels, sampling, seed: int):
    """Mean reward of sampled answers to held-out training prompts, with the training sampler's shape."""
    cfg, tokenizer = programs.rl, models.tokenizer
    batches = list(pipelines.eval_batches(prompt_rows(records, tokenizer, cfg.max_prompt_tokens), cfg.train.batch_size))

    def evaluate(state: RlState) -> dict[str, float]:
        policy, kept = programs.trainable.full_params(state.frozen, state.params), []
        for number, batch in enumerate(batches):
            first = number * cfg.train.batch_size * cfg.group_size  # each prompt has its own noise, for every batch size
            decoded = programs.sampler(policy, batch["tokens"], batch["segment_ids"], seed, 0, sampling, first)
            samples, _ = rollout.to_samples(decoded, [records[int(r)] for r in batch["row"]], cfg.group_size, tokenizer)
            result = checked(reward(samples), cfg.max_invalid_rewards)
            kept.append(result.values[result.valid & (np.repeat(batch["row_mask"], cfg.group_size) > 0)])
        rewards = np.concatenate(kept)
        return {"reward": float(rewards.mean()) if len(rewards) else math.nan}

    return evaluate
