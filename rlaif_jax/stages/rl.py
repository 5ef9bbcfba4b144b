"""The stage of an arm: reinforcement learning against its reward."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.config import RlConfig
from rlaif_jax.config.stages import REWARD, SFT, Stage
from rlaif_jax.data import pipelines
from rlaif_jax.data.rows import prompt_rows
from rlaif_jax.models import heads, transformer
from rlaif_jax.models.lora import apply_lora
from rlaif_jax.rewards.base import RewardResult, Sample, checked
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels
from rlaif_jax.runs.rewards import RunRewards
from rlaif_jax.sampling import filters
from rlaif_jax.sampling.sampler import make_sampler
from rlaif_jax.sharding import is_first
from rlaif_jax.sharding.memory import on_device, on_host, require_host_memory
from rlaif_jax.trainers import loop, rl, rollout
from rlaif_jax.trainers.adapter import adapted, adapter_state
from rlaif_jax.trainers.health import Health
from rlaif_jax.trainers.learn import make_learn
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.offload import optimizers_on_host, with_optimizers_on_host
from rlaif_jax.trainers.optimizer import make_optimizer
from rlaif_jax.trainers.rl import RlState
from rlaif_jax.trainers.update import TrainState, make_update_fn, state_of


def require_memory(x: Run, name: str) -> None:
    """UserError if the stage's settings ask for memory that the mesh's devices do not have; to be asked before hours of SFT."""
    cfg = x.cfg.rl_of(name)
    for setting, wanted in (("offload_optimizer", cfg.offload_optimizer), ("offload_reference", cfg.offload_reference)):
        if wanted:
            require_host_memory(x.place.mesh, f"rl.{setting}")


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """RL of one arm from the SFT policy, which is also the KL reference, against the arm's reward."""
    data, models, cfg, name = RunData(x), RunModels(x), x.cfg.rl_of(stage.name), stage.name
    model, seed = models.config, x.cfg.seed
    train, held_out, facts = data.rl_prompts(cfg.eval_prompts)
    sampler = make_sampler(
        model, transformer.logical_axes(model), x.place, group=cfg.group, max_tokens=cfg.sampling.max_tokens,
        pad_id=models.tokenizer.pad_id,
    )  # fmt: skip
    sampling = filters.traced(cfg.sampling, models.tokenizer.eos_ids)
    state, shardings, learn = _learner(x, cfg, models)
    reward = RunRewards(x, models, RunLlms(x, models)).arm(name, state.frozen)
    rows = prompt_rows(train, models.tokenizer, cfg.max_prompt)
    batches = pipelines.train_batches(rows, batch_size=cfg.train.batch_size, seed=seed)
    sample = rollout.make_rollout(sampler, reward, train, models.tokenizer, sampling, cfg, seed)
    refill = rollout.make_refill(sample, lambda: next(batches), cfg) if cfg.refills else None
    # Under an adapter the frozen base is the reference.
    needed = cfg.kl.coefficient > 0 and not cfg.kl.refresh and x.cfg.lora is None
    reference, fetch = _reference(x, cfg, models) if needed else (None, None)
    view = _view(x)
    step = rl.make_step(
        sample, refill, rl.make_annotate(model, cfg, x.place), rl.make_experience(cfg), learn, reference, sampling, cfg,
        seed + 13, SampleTable(x, name).show, view, fetch,
    )  # fmt: skip
    evaluate = _rl_evaluate(x, cfg, models, sampler, reward, held_out, sampling, view)
    loop.fit(_watched(x, name, cfg), state, shardings, batches, step, evaluate)
    return facts | models.selected(name)


def _reference(x: Run, cfg: RlConfig, models: RunModels) -> tuple[Any, Callable[[Any], Any] | None]:
    """The SFT policy's weights; where they wait on the host, also what brings them to the devices."""
    reference = models.policy(SFT.name)
    if not cfg.offload_reference:
        return reference, None
    waiting = on_host(jax.tree.map(lambda w: w.sharding, reference))
    return jax.device_put(reference, waiting), partial(jax.device_put, device=on_device(waiting))


def _watched(x: Run, name: str, cfg: RlConfig) -> loop.Stage:
    """The stage, with warnings on the terminal when its metrics look sick."""
    rows = read_metrics(x.folder(name) / "metrics.jsonl")
    health = Health(lambda text: x.console.print(f"{name}: {text}", style="yellow", markup=False), *rows[:1])
    return loop.Stage(name, x.folder(name), cfg.train, x.console, lambda m: m["reward"], x.cfg.logging.wandb_project, health.look)


def _learner(x: Run, cfg: RlConfig, models: RunModels):
    """State, shardings and `learn` of policy and critic, started from the weights of earlier stages."""
    axes, optimizer = transformer.logical_axes(models.config), make_optimizer(cfg.train.optimizer, cfg.updates)
    loss_fn = partial(rl.rl_loss, cfg=models.config, rl=cfg, place=x.place)
    if x.cfg.lora is None:
        policy, policy_at = state_of(models.policy(SFT.name), axes, optimizer, x.place)
    else:
        loss_fn, key = adapted(loss_fn, x.cfg.lora), jax.random.key(x.cfg.seed)
        base = models.policy(SFT.name)
        policy, policy_at = adapter_state(base, axes, models.config, x.cfg.lora, optimizer, x.place, key)
    update = make_update_fn(loss_fn, optimizer, cfg.train.accumulation)
    critic, critic_at, critic_update = (None,) * 3 if cfg.critic is None else _critic(x, cfg, models)
    refreshed = cfg.kl.refresh > 0 and cfg.kl.coefficient > 0
    numbers = {"kl_coefficient": np.float32(cfg.kl.coefficient), "reward_stats": np.zeros(3, np.float32)}
    numbers = jax.device_put(numbers, x.place.replicated)
    state = RlState(**policy, critic=critic, reference=jax.tree.map(jnp.copy, policy.params) if refreshed else None, **numbers)
    shardings = RlState(
        **policy_at, critic=critic_at, reference=policy_at.params if refreshed else None,
        **dict.fromkeys(numbers, x.place.replicated),
    )  # fmt: skip
    learn = make_learn(update, critic_update, cfg, shardings, x.place)
    if not cfg.offload_optimizer:
        return state, shardings, learn
    waiting = optimizers_on_host(shardings)
    return jax.device_put(state, waiting), waiting, with_optimizers_on_host(learn, shardings)


def _critic(x: Run, cfg: RlConfig, models: RunModels):
    """The critic's state, shardings and update. With a lora section it is an adapter and a head over the policy's base,
    which the reward model's adapter lies over, too (the config sees to it)."""
    model, lora, optimizer = models.config, x.cfg.lora, make_optimizer(cfg.critic.optimizer, cfg.updates)
    loss_fn = partial(rl.critic_loss, cfg=model, rl=cfg, place=x.place)
    if cfg.critic.init == "reward":
        x.require(REWARD.name)
    if lora is None:
        axes, head = heads.logical_axes(model), heads.zero_head(model)
        params = models.scalar(REWARD.name) if cfg.critic.init == "reward" else {"model": models.policy(SFT.name), "head": head}
    else:
        axes, loss_fn = heads.adapter_axes(model, lora), adapted(loss_fn, lora)
        fresh = partial(heads.adapter_init, model, lora, jax.random.fold_in(jax.random.key(x.cfg.seed), 1))
        params = models.adapter(REWARD.name) if cfg.critic.init == "reward" else fresh()
    state, shardings = state_of(params, axes, optimizer, x.place)
    return state, shardings, make_update_fn(loss_fn, optimizer, cfg.train.accumulation)


def _view(x: Run):
    """What a state's frozen weights and trained ones are together."""
    lora = x.cfg.lora
    return rl.plain_view if lora is None else partial(apply_lora, lora=lora)


def _rl_evaluate(x: Run, cfg: RlConfig, models: RunModels, sampler, reward, records, sampling, view):
    """Mean reward of sampled answers to held-out training prompts, with the training sampler's shape."""
    batches = list(pipelines.eval_batches(prompt_rows(records, models.tokenizer, cfg.max_prompt), cfg.train.batch_size))

    def evaluate(state: TrainState) -> dict[str, float]:
        kept = []
        for batch in batches:
            decoded = sampler(view(state.frozen, state.params), batch["tokens"], batch["segment_ids"], x.cfg.seed + 7, 0, sampling)
            rows = [records[int(r)] for r in batch["row"]]
            samples, _ = rollout.to_samples(decoded, rows, cfg.group, models.tokenizer)
            result = checked(reward(samples), cfg.max_lost_rewards)
            kept.append(result.values[result.valid & (np.repeat(batch["row_mask"], cfg.group) > 0)])
        return {"reward": float(np.concatenate(kept).mean())}

    return evaluate


class SampleTable:
    """Every few steps, a few completions with their rewards: in samples.jsonl, TensorBoard and on the terminal."""

    def __init__(self, x: Run, stage: str, rows: int = 8):
        self._x, self._stage, self._rows, self._seen = x, stage, rows, False

    def show(self, step: int, samples: list[Sample], result: RewardResult) -> None:
        """Appends the step's first completions; process 0 alone does."""
        if not is_first():
            return
        rows = [
            {"step": step, "prompt": e.prompt, "response": e.response, "finished": e.finished,
             "reward": round(float(v), 4) if ok else None}
            for e, v, ok in list(zip(samples, result.values, result.valid, strict=True))[: self._rows]
        ]  # fmt: skip
        self._append(step, rows)
        if self._x.console.is_terminal:
            self._x.console.print(_sample_rows(step, rows))

    def _append(self, step: int, rows: list[dict]) -> None:
        path = self._x.folder(self._stage) / "samples.jsonl"
        if not self._seen and path.exists():  # rows of a run that died after its last checkpoint come again
            old = path.read_text(encoding="utf-8").split("\n")[:-1]
            path.write_text("".join(line + "\n" for line in old if json.loads(line)["step"] < step), encoding="utf-8")
        self._seen = True
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _sample_rows(step: int, rows: list[dict]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"samples at step {step}", show_lines=False)
    for column in ("reward", "prompt", "response"):
        table.add_column(column)
    for row in rows[:4]:
        table.add_row(str(row["reward"]), Text(row["prompt"]), Text(row["response"]))
    return table
