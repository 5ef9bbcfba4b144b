"""The stages of reinforcement learning: against the reward model, and against the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rlaif_jax.config import RlConfig
from rlaif_jax.data import pipelines
from rlaif_jax.data.rows import prompt_rows
from rlaif_jax.rewards.base import RewardFn, checked, with_unfinished_penalty
from rlaif_jax.rewards.rules import with_rules
from rlaif_jax.run.data import RunData
from rlaif_jax.run.folder import Run
from rlaif_jax.run.models import RunModels
from rlaif_jax.run.samples import SampleTable
from rlaif_jax.sampling import filters
from rlaif_jax.sharding.memory import require_host_memory
from rlaif_jax.trainers import loop, rl, rl_programs, rollout
from rlaif_jax.trainers.health import Health
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.offload import to_host
from rlaif_jax.trainers.rl_types import RlPrograms, RlState
from rlaif_jax.trainers.trainable import trainable_of


def run_rl(x: Run) -> Mapping[str, Any]:
    """RL from the SFT policy, which is also the reference, against the reward model."""
    x.require("sft", "reward")
    cfg = x.cfg.rl
    return _reinforce(x, "rl", lambda models, base: models.reward("reward", cfg.train.batch_size * cfg.group, base))


def run_rl_judge(x: Run) -> Mapping[str, Any]:
    """RL from the same policy against the principle-guided judge."""
    x.require("sft")
    return _reinforce(x, "rl_judge", lambda models, base: models.judge(x.cfg.rl_of("rl_judge").group))


def require_memory(x: Run, name: str) -> None:
    """UserError if the stage's settings ask for memory that the mesh's devices do not have; to be asked before hours of SFT."""
    cfg = x.cfg.rl_of(name)
    for setting, wanted in (("offload_optimizer", cfg.offload_optimizer), ("offload_reference", cfg.offload_reference)):
        if wanted:
            require_host_memory(x.place.mesh, f"rl.{setting}")


def _reinforce(x: Run, name: str, reward_over: Callable[[RunModels, Any], RewardFn]) -> Mapping[str, Any]:
    """`reward_over(models, base)` makes the model's reward; `base` are the frozen weights under the policy's adapter."""
    data, models, cfg, seed = RunData(x), RunModels(x), x.cfg.rl_of(name), x.cfg.seed
    tokenizer = models.tokenizer
    train, held_out, facts = data.rl_prompts(cfg.eval_prompts)
    sampling = filters.traced(cfg.sampling, tokenizer.eos_ids)
    programs = rl_programs.build(models.config, cfg, trainable_of(x.cfg.lora), x.place, pad_id=tokenizer.pad_id)
    state, shardings = _start(x, models, programs)
    rules = x.cfg.judge.rules if name == "rl_judge" else x.cfg.rl_rules
    reward = with_unfinished_penalty(with_rules(reward_over(models, state.frozen), rules), cfg.shaping.unfinished_penalty)
    rows = prompt_rows(train, tokenizer, cfg.max_prompt)
    batches = pipelines.train_batches(rows, batch_size=cfg.train.batch_size, seed=seed)
    sample = rollout.make_rollout(
        programs.sampler, reward, records=train, tokenizer=tokenizer, sampling=sampling, rl=cfg, seed=seed
    )  # fmt: skip
    step = rl.make_step(
        programs, sample, sampling=sampling, seed=seed + 13, reference=_reference(models, programs),
        refill=rollout.make_refill(sample, lambda: next(batches), cfg) if cfg.refills else None,
        on_samples=SampleTable(x, name).show,
    )  # fmt: skip
    evaluate = _evaluation(programs, reward, held_out, models=models, sampling=sampling, seed=seed + 7)
    loop.fit(_watched(x, name, cfg), state, shardings, batches, step, evaluate)
    return facts | models.selected(name, cfg.train)


def _start(x: Run, models: RunModels, programs: RlPrograms) -> tuple[RlState, RlState]:
    """State and shardings, from the weights of earlier stages."""
    critic = None
    if programs.rl.critic is not None and programs.rl.critic.init == "reward":
        x.require("reward")
        critic = models.trained("reward")
    return programs.init(models.policy("sft"), jax.random.key(x.cfg.seed), critic)


def _reference(models: RunModels, programs: RlPrograms) -> Any:
    """The SFT policy's weights, on the devices or in the host's memory; None where the state holds what is needed."""
    if not rl.needs_reference(programs.rl, programs.trainable):
        return None
    reference = models.policy("sft")
    return to_host(reference) if programs.rl.offload_reference else reference


def _watched(x: Run, name: str, cfg: RlConfig) -> loop.Stage:
    """The stage, with warnings on the terminal when its metrics look sick."""
    rows = read_metrics(x.folder(name) / "metrics.jsonl")
    health = Health(lambda text: x.console.print(f"{name}: {text}", style="yellow", markup=False), *rows[:1])
    return loop.Stage(name, x.folder(name), cfg.train, x.console, lambda m: m["reward"], x.cfg.logging.wandb_project, health.look)


def _evaluation(programs: RlPrograms, reward: RewardFn, records: list, *, models: RunModels, sampling, seed: int):
    """Mean reward of sampled answers to held-out training prompts, with the training sampler's shape."""
    cfg, tokenizer = programs.rl, models.tokenizer
    batches = list(pipelines.eval_batches(prompt_rows(records, tokenizer, cfg.max_prompt), cfg.train.batch_size))

    def evaluate(state: RlState) -> dict[str, float]:
        policy, kept = programs.trainable.full_params(state.frozen, state.params), []
        for batch in batches:
            decoded = programs.sampler(policy, batch["tokens"], batch["segment_ids"], seed, 0, sampling)
            samples, _ = rollout.to_samples(decoded, [records[int(r)] for r in batch["row"]], cfg.group, tokenizer)
            result = checked(reward(samples), cfg.max_lost_rewards)
            kept.append(result.values[result.valid & (np.repeat(batch["row_mask"], cfg.group) > 0)])
        return {"reward": float(np.concatenate(kept).mean())}

    return evaluate
