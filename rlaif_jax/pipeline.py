"""The stages of one experiment. Each leaves a folder; a finished one is skipped, an interrupted one goes on.

    tokenizer -> sft [-> feedback -> curate] -> reward [-> grader] [-> judge] -> rl [-> rl_judge] -> evaluate -> report
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from rlaif_jax.config import RewardConfig, RlConfig, RunConfig, TrainConfig
from rlaif_jax.data import pipelines
from rlaif_jax.data.run_data import RunData
from rlaif_jax.evaluation import stage as evaluation
from rlaif_jax.experiment import Experiment
from rlaif_jax.feedback.detector import BAD, GOOD
from rlaif_jax.feedback_stages import run_curate, run_judge
from rlaif_jax.models import heads, transformer
from rlaif_jax.rewards.base import Exchange, RewardFn, RewardResult, checked, with_unfinished_penalty
from rlaif_jax.rewards.rules import with_rules
from rlaif_jax.run_models import RunModels
from rlaif_jax.sampling import filters
from rlaif_jax.sampling.rollout import make_sampler
from rlaif_jax.trainers import loop, rl, sft
from rlaif_jax.trainers.feedback import feedback_loss
from rlaif_jax.trainers.optimizer import make_optimizer
from rlaif_jax.trainers.reward import label_loss, pair_loss
from rlaif_jax.trainers.update import create_state, make_update

StageFn = Callable[[Experiment], Mapping[str, Any]]


def run(experiment: Experiment, todo: Mapping[str, StageFn]) -> None:
    """Runs the stages in order and prints what each took."""
    for name, stage in todo.items():
        if experiment.is_done(name):
            experiment.console.print(f"{name}: done before, skipped")
            continue
        began = time.perf_counter()
        facts = stage(experiment)
        experiment.mark_done(name, began, facts)
        experiment.console.print(f"{name}: done in {time.perf_counter() - began:.0f} s  {_short(facts)}")


def _short(facts: Mapping[str, Any]) -> str:
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
    return "  ".join(s for s in shown if len(s) < 100)


def run_tokenizer(x: Experiment) -> Mapping[str, Any]:
    """Writes the bundled corpus where none is given; trains or copies the tokenizer."""
    data = RunData(x)
    facts = data.prepare()
    tokenizer = data.make_tokenizer()
    return facts | {"tokens": tokenizer.vocab_size}


def _train_scalar(x: Experiment, name: str, cfg: RewardConfig, seed: int) -> Mapping[str, Any]:
    """Trains the reward model or the grader."""
    x.require("tokenizer", "sft")
    data, models = RunData(x), RunModels(x)
    tokenizer, model = models.tokenizer, models.config
    batches, evaluation_batches, facts = data.scalar_batches(cfg, tokenizer, seed)
    if cfg.loss == "bradley_terry":
        loss_fn = partial(pair_loss, cfg=model, centring=cfg.centring, place=x.place)
    else:
        loss_fn = partial(label_loss, cfg=model, place=x.place)

    def init_params():
        return heads.init(model, jax.random.key(seed))

    state, shardings, update = _trainer(x, cfg.train, init_params, heads.logical_axes(model), loss_fn)
    if cfg.init == "sft":
        state = state.replace(params=state.params | {"model": models.policy("sft")})
    stage = _stage(x, name, cfg.train, lambda m: m["accuracy"])
    evaluate = sft.make_evaluate(loss_fn, evaluation_batches, x.place)
    state = loop.fit(stage, state, shardings, batches, sft.make_step(update, x.place), evaluate)
    return facts | _final(x, name, cfg.train)


def _trainer(x: Experiment, train: TrainConfig, init_params, axes, loss_fn):
    optimizer = make_optimizer(train.optimizer, train.steps)
    state, shardings = create_state(init_params, axes, optimizer, x.place)
    return state, shardings, make_update(loss_fn, optimizer, shardings, train.accumulation)


def _stage(x: Experiment, name: str, train: TrainConfig, score: Callable[[dict], float]) -> loop.Stage:
    return loop.Stage(name, x.folder(name), train, x.console, score, x.cfg.logging.wandb_project)


def _final(x: Experiment, name: str, train: TrainConfig) -> dict[str, Any]:
    """Which checkpoint is handed on, and its held-out metrics."""
    return RunModels(x).selected(name, train)


def run_feedback(x: Experiment) -> Mapping[str, Any]:
    """The embedded feedback model: from the SFT policy, on transcripts of every role and pairs of verdicts."""
    x.require("sft")
    data, models, cfg = RunData(x), RunModels(x), x.cfg.feedback
    words = tuple(models.tokenizer.encode_response(word)[0] for word in (GOOD, BAD))
    loss_fn = partial(feedback_loss, cfg=models.config, words=words, place=x.place)
    axes = transformer.logical_axes(models.config)
    state, shardings, update = _trainer(x, cfg.train, models.fresh_policy, axes, loss_fn)
    state = state.replace(params=models.policy("sft"))
    batches, evaluation_batches, facts = data.feedback_batches(models.tokenizer)
    evaluate = sft.make_evaluate(loss_fn, evaluation_batches, x.place)
    stage = _stage(x, "feedback", cfg.train, lambda m: m["accuracy"])
    loop.fit(stage, state, shardings, batches, sft.make_step(update, x.place), evaluate)
    return facts | _final(x, "feedback", cfg.train)


def run_sft(x: Experiment) -> Mapping[str, Any]:
    """Supervised fine-tuning from fresh weights."""
    x.require("tokenizer")
    data, models, cfg = RunData(x), RunModels(x), x.cfg.sft
    loss_fn = partial(sft.sft_loss, cfg=models.config, place=x.place)
    state, shardings, update = _trainer(
        x, cfg.train, models.fresh_policy, transformer.logical_axes(models.config), loss_fn
    )  # fmt: skip
    batches, evaluation_batches, facts = data.sft_batches(models.tokenizer)
    evaluate = sft.make_evaluate(loss_fn, evaluation_batches, x.place)
    stage = _stage(x, "sft", cfg.train, lambda m: -m["loss"])
    loop.fit(stage, state, shardings, batches, sft.make_step(update, x.place), evaluate)
    return facts | _final(x, "sft", cfg.train)


def run_reward(x: Experiment) -> Mapping[str, Any]:
    """The reward model that RL maximises."""
    return _train_scalar(x, "reward", x.cfg.reward, x.cfg.seed + 1)


def run_grader(x: Experiment) -> Mapping[str, Any]:
    """An evaluator of its own, on data that the reward model never saw; never a training signal."""
    return _train_scalar(x, "grader", x.cfg.grader, x.cfg.seed + 2)


def run_rl(x: Experiment) -> Mapping[str, Any]:
    """RL from the SFT policy, which is also the reference, against the reward model."""
    x.require("sft", "reward")
    cfg = x.cfg.rl
    return _reinforce(x, "rl", RunModels(x).reward("reward", cfg.train.batch_size * cfg.grpo.group))


def run_rl_judge(x: Experiment) -> Mapping[str, Any]:
    """The same against the judge."""
    x.require("sft")
    group = x.cfg.rl_of("rl_judge").grpo.group
    return _reinforce(x, "rl_judge", RunModels(x).judge(group))


def _reinforce(x: Experiment, name: str, model_reward: RewardFn) -> Mapping[str, Any]:
    data, models, cfg = RunData(x), RunModels(x), x.cfg.rl_of(name)
    model, axes, group = models.config, transformer.logical_axes(models.config), cfg.grpo.group
    train, held_out, facts = data.rl_prompts(cfg.eval_prompts)
    reference = models.policy("sft")
    rules = x.cfg.judge.rules if name == "rl_judge" else x.cfg.rl_rules
    reward = with_unfinished_penalty(with_rules(model_reward, rules), cfg.unfinished_penalty)
    sampler = make_sampler(
        model, axes, x.place, group=group, max_tokens=cfg.sampling.max_tokens, pad_id=models.tokenizer.pad_id
    )  # fmt: skip
    loss_fn = partial(rl.rl_loss, cfg=model, grpo=cfg.grpo, place=x.place)
    state, shardings, update = _trainer(x, cfg.train, models.fresh_policy, axes, loss_fn)
    state = state.replace(params=jax.tree.map(np.array, reference))  # a copy of its own: the update donates it
    state = jax.device_put(state, shardings)
    sampling = filters.traced(cfg.sampling, models.tokenizer.eos_ids)
    batches = pipelines.prompt_batches(
        train, models.tokenizer, batch_size=cfg.train.batch_size, max_length=cfg.max_prompt, seed=x.cfg.seed
    )  # fmt: skip
    table = SampleTable(x, name)
    rollout = rl.make_rollout(sampler, reward, train, models.tokenizer, sampling, cfg, x.cfg.seed)
    step = rl.make_step(
        rollout, rl.make_reference(model, cfg, x.place), rl.make_experience(cfg), update, reference, sampling, cfg,
        table.show,
    )  # fmt: skip
    evaluate = _rl_evaluate(x, cfg, models, sampler, reward, held_out, sampling)
    loop.fit(_stage(x, name, cfg.train, lambda m: m["reward"]), state, shardings, batches, step, evaluate)
    return facts | _final(x, name, cfg.train)


def _rl_evaluate(x: Experiment, cfg: RlConfig, models: RunModels, sampler, reward, records, sampling):
    """Mean reward of sampled answers to held-out training prompts, with the training sampler's shape."""
    batches = list(
        pipelines.prompt_eval_batches(
            records, models.tokenizer, batch_size=cfg.train.batch_size, max_length=cfg.max_prompt
        )
    )

    def evaluate(state) -> dict[str, float]:
        kept = []
        for batch in batches:
            decoded = sampler(state.params, batch["tokens"], batch["segment_ids"], x.cfg.seed + 7, 0, sampling)
            rows = [records[int(r)] for r in batch["row"]]
            exchanges, _ = rl.to_exchanges(decoded, rows, cfg.grpo.group, models.tokenizer)
            result = checked(reward(exchanges), cfg.max_lost_rewards)
            kept.append(result.values[result.valid & (np.repeat(batch["row_mask"], cfg.grpo.group) > 0)])
        return {"reward": float(np.concatenate(kept).mean())}

    return evaluate


class SampleTable:
    """Every few steps, a few completions with their rewards: in samples.jsonl, TensorBoard and on the terminal."""

    def __init__(self, x: Experiment, stage: str, rows: int = 8):
        self._x, self._stage, self._rows, self._seen = x, stage, rows, False

    def show(self, step: int, exchanges: list[Exchange], result: RewardResult) -> None:
        """Appends the step's first completions."""
        rows = [
            {"step": step, "prompt": e.prompt, "response": e.response, "finished": e.finished,
             "reward": round(float(v), 4) if ok else None}
            for e, v, ok in list(zip(exchanges, result.values, result.valid, strict=True))[: self._rows]
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


ALL_STAGES: Mapping[str, StageFn] = {
    "tokenizer": run_tokenizer,
    "sft": run_sft,
    "feedback": run_feedback,
    "curate": run_curate,
    "reward": run_reward,
    "grader": run_grader,
    "judge": run_judge,
    "rl": run_rl,
    "rl_judge": run_rl_judge,
    "evaluate": evaluation.run_evaluate,
    "report": evaluation.run_report,
}


def stages(cfg: RunConfig) -> dict[str, StageFn]:
    """The stages that this config needs, in order."""
    needed = {
        "feedback": cfg.feedback is not None and cfg.feedback.backend == "embedded",
        "curate": cfg.curate is not None,
        "grader": cfg.grader is not None,
        "judge": cfg.judge is not None and cfg.judge.game is not None,
        "rl_judge": cfg.judge is not None,
    }
    return {name: stage for name, stage in ALL_STAGES.items() if needed.get(name, True)}
