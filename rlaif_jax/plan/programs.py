"""The jitted programs of a run with abstract arguments. They are the functions that the stages call; nothing is allocated."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlaif_jax.config import RunConfig
from rlaif_jax.config.stages import REWARD, SFT
from rlaif_jax.models import heads, ops
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.pretrained import foreign_config
from rlaif_jax.plan.abstract import (
    Abstract,
    Program,
    array,
    chip_bytes,
    full_weights,
    gathered_bytes,
    in_rows,
    named,
    single,
    without,
)
from rlaif_jax.plan.judging import judge_weights, verdicts
from rlaif_jax.sampling import filters
from rlaif_jax.sampling.decode import Decoded
from rlaif_jax.sharding import Placement
from rlaif_jax.sharding.placement import abstract_like
from rlaif_jax.trainers import rl, sft
from rlaif_jax.trainers.config import RlConfig, TrainConfig
from rlaif_jax.trainers.optimizer import make_optimizer
from rlaif_jax.trainers.reward import label_loss, pair_loss
from rlaif_jax.trainers.rl_programs import build
from rlaif_jax.trainers.rl_types import RlBatch, RlPrograms, RlState
from rlaif_jax.trainers.trainable import Trainable, abstract_params, abstract_train_state, scalar_base, trainable_of
from rlaif_jax.trainers.update import make_update, shardings_of


def build_programs(cfg: RunConfig, model: ModelConfig, place: Placement) -> list[Program]:
    """The programs to plan.

    These are the updates of SFT and of the reward model, if the run trains them; rollout, log-probs and update of every arm; the
    scores of the reward model, if an arm uses it; and the verdicts of a judge on the mesh.
    A program that several arms share is planned once, named after the first arm, with the largest of their reward models held.
    """
    trainable, judge = trainable_of(cfg.lora), judge_weights(cfg, model, place)
    programs = [_sft(cfg, model, trainable, place)] if cfg.sft is not None else []
    if cfg.reward is not None and not cfg.reward.folder:
        programs.append(_reward(cfg, model, trainable, place))
    arms = [_arm(name, cfg.rl_of(name), model, trainable, place) for name in cfg.all_arms()]
    firsts: list[_Arm] = []
    for arm in arms:
        if any(_compiled(arm, chunks=True) == _compiled(other, chunks=True) for other in firsts):
            continue
        firsts.append(arm)
        programs += _rl(cfg, arm, arms, judge)
    judged = [arm for arm in arms if cfg.all_arms()[arm.name].judge]
    return programs + [verdicts(cfg, arm.name, model, judge, arm.between_updates, place) for arm in judged[:1] if judge]


def _compiled(arm: _Arm, chunks: bool) -> RlConfig:
    """The arm's settings, with defaults for those that do not change a program's cost. Two arms with equal results share their
    programs. Without `chunks`, settings that only the rollout depends on get defaults too."""
    own = arm.programs.rl
    batch, accumulation = own.train.batch_size, own.train.grad_accumulation
    train = TrainConfig(batch_size=batch, grad_accumulation=accumulation, optimizer=own.train.optimizer)
    kl = dataclasses.replace(own.kl, coef=1.0 if own.kl.active else 0.0)
    return dataclasses.replace(
        own, train=train, kl=kl, max_resamples=0, eval_prompts=0, samples_every=1, max_invalid_rewards=0.0,
        rollout_chunks=own.rollout_chunks if chunks else 1,
    )  # fmt: skip


def _passes(model: ModelConfig) -> int:
    """How often an update reads the weights: in the forward and the backward pass, and again to recompute activations."""
    return 2 if model.remat == "none" else 3


def _text(rows: tuple[int, ...], length: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: array((*rows, length), jnp.int32) for name in ("tokens", "segment_ids", "positions")}


def _more_accumulation(stage: str, train: TrainConfig) -> tuple[tuple[str, ...], ...]:
    options = (train.grad_accumulation * 2, train.grad_accumulation * 4)
    return tuple((f"{stage}.train.grad_accumulation={n}",) for n in options if train.batch_size % n == 0)


def _update(
    name: str, train: TrainConfig, loss_fn: Any, batch: Any, *, model: ModelConfig, trainable: Trainable, place: Placement
) -> Program:
    optimizer = make_optimizer(train.optimizer, train.steps)
    state = abstract_train_state(trainable, model, optimizer, place, scalar=name == REWARD.name)
    update = make_update(trainable.loss(loss_fn), optimizer, shardings_of(state), train.grad_accumulation)
    read = _passes(model) * train.grad_accumulation * gathered_bytes(model, place)
    return Program(name, update, (state, in_rows(batch, place)), read=read, remedies=_more_accumulation(name, train))


def _sft(cfg: RunConfig, model: ModelConfig, trainable: Trainable, place: Placement) -> Program:
    rows, length = cfg.sft.train.batch_size, cfg.sft.max_length
    batch = _text((rows,), length) | {"loss_mask": array((rows, length), jnp.float32)}
    loss_fn = partial(sft.sft_loss, cfg=model, place=place)
    return _update(SFT.name, cfg.sft.train, loss_fn, batch, model=model, trainable=trainable, place=place)


def _reward(cfg: RunConfig, model: ModelConfig, trainable: Trainable, place: Placement) -> Program:
    rows, length = cfg.reward.train.batch_size, cfg.reward.max_length
    if cfg.reward.loss == "bradley_terry":
        batch = _text((rows, 2), length) | {"margin": array((rows,), jnp.float32)}
        loss_fn = partial(pair_loss, cfg=model, centring=cfg.reward.center_coef, place=place)
    else:
        batch = _text((rows,), length) | {"label": array((rows,), jnp.float32)}
        loss_fn = partial(label_loss, cfg=model, place=place)
    return _update(REWARD.name, cfg.reward.train, loss_fn, batch, model=model, trainable=trainable, place=place)


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """A reward model: its config, its weights, and the tokens per row."""

    model: ModelConfig
    weights: Abstract
    max_length: int


def _scorer(cfg: RunConfig, model: ModelConfig, trainable: Trainable, base: Abstract, place: Placement) -> _Scorer:
    """The reward model of a folder or of this run: full weights, or an adapter on the policy's base (see `RunRewards.scalar`)."""
    if not cfg.reward.folder and cfg.shares_base(cfg.reward):
        trained, _ = abstract_params(trainable, model, place, scalar=True)
        weights = trainable.full_params(scalar_base(base), named("reward model", trained))
        return _Scorer(model, weights, cfg.reward.max_length)
    shapes = foreign_config(cfg.reward.folder, cfg.model, scalar=True) if cfg.reward.folder else model
    return _Scorer(shapes, named("reward model", full_weights(shapes, place, scalar=True)), cfg.reward.max_length)


@dataclasses.dataclass(frozen=True)
class _Arm:
    """One arm of RL: its programs, its state, and separate reference weights (None if there are none)."""

    name: str
    model: ModelConfig
    place: Placement
    programs: RlPrograms
    state: RlState
    reference: Abstract | None

    @property
    def between_updates(self) -> tuple[Abstract, Abstract]:
        """The parts of state and reference that are on the chips outside of updates and reference log-probs."""
        kept = self.state
        if self.programs.rl.offload_optimizer:
            kept = kept.replace(opt_state=None, critic=None if kept.critic is None else kept.critic.replace(opt_state=None))
        return kept, None if self.programs.rl.offload_reference else self.reference


def _arm(name: str, settings: RlConfig, model: ModelConfig, trainable: Trainable, place: Placement) -> _Arm:
    programs = build(model, settings, trainable, place, pad_id=0)
    reference = named("reference", full_weights(model, place)) if rl.needs_reference(settings, trainable) else None
    return _Arm(name, model, place, programs, named("state", programs.abstract), reference)


def _rl(cfg: RunConfig, arm: _Arm, arms: list[_Arm], judge: Abstract) -> list[Program]:
    """The programs of an arm that no earlier arm has."""
    same = [other for other in arms if _compiled(other, chunks=False) == _compiled(arm, chunks=False)]
    rollouts = [other for other in same if _compiled(other, chunks=True) == _compiled(arm, chunks=True)]
    served = same if same[0] is arm else rollouts
    scorer = None
    if any(cfg.all_arms()[other.name].reward_model for other in served):
        scorer = _scorer(cfg, arm.model, arm.programs.trainable, arm.state.frozen, arm.place)
    rewards = [
        (scorer.weights if scorer is not None and kind.reward_model else (), judge if kind.judge else ())
        for kind in (cfg.all_arms()[other.name] for other in served)
    ]  # fmt: skip
    programs = _arm_programs(arm, _section(cfg, arm.name), rewards, scorer)
    programs = programs if same[0] is arm else programs[:1]
    return [
        dataclasses.replace(program, also=tuple(
            f"{other.name}:{program.name.partition(':')[2]}"
            for other in (rollouts if program.name == f"{arm.name}: rollout" else same) if other is not arm
        ))
        for program in programs
    ]  # fmt: skip


def _section(cfg: RunConfig, name: str) -> str:
    """The config section with the RL settings of an arm."""
    arm = cfg.arms.get(name)
    return "rl" if arm is None or arm.rl is None else f"arms.{name}.rl"


def _arm_programs(arm: _Arm, section: str, rewards: list[tuple], scorer: _Scorer | None) -> list[Program]:
    """The programs of an arm. `rewards`: the reward models of each arm that shares them. A `scorer` is planned too."""
    settings, model, place, state = arm.programs.rl, arm.model, arm.place, arm.state
    trainable = arm.programs.trainable

    def rewarding(used: tuple) -> Abstract:  # the largest reward models of an arm, without those in `used`
        return max((without(weights, used) for weights in rewards), key=chip_bytes)

    policy = trainable.full_params(state.frozen, state.params)
    models = rl.scoring_models(settings, trainable, state, arm.reference)
    rows = settings.train.batch_size * settings.group_size
    prompts = {k: array((settings.train.batch_size, settings.max_prompt_tokens), jnp.int32) for k in ("tokens", "segment_ids")}
    decoded = _decoded(rows, settings.sampling.max_tokens, place)
    scored = (models, *in_rows(prompts, place).values(), decoded, single(jnp.float32, place))
    batch = _batch(arm.programs, scored, state, place)
    weights, passes = gathered_bytes(model, place), sum(x is not None for x in models)
    kept, reference = arm.between_updates
    programs = [
        _rollout(arm, section, policy, prompts, (without(kept, (policy,)), reference, rewarding((policy,)))),
        Program(
            f"{arm.name}: log-probs", arm.programs.score_rollout, scored, (without(kept, models), rewarding(models)),
            passes * weights,
        ),
    ]  # fmt: skip
    if scorer is not None:
        held = without(kept, (scorer.weights,)), reference
        programs.append(_scores(f"{arm.name}: scores", scorer, rows, held, place))
    accumulation = settings.train.grad_accumulation
    updates = settings.num_epochs * settings.num_minibatches * (1 if state.critic is None else 2)
    more = [n for n in (2 * accumulation, 4 * accumulation) if rows // settings.num_minibatches % n == 0]
    given = state.replace(frozen=None), batch, single(jnp.uint32, place), single(jnp.int32, place), state.frozen
    return [*programs, Program(
        f"{arm.name}: update", arm.programs.update_program, given, (reference, rewarding((state,))),
        updates * accumulation * _passes(model) * weights,
        remedies=tuple((f"{section}.train.grad_accumulation={n}",) for n in more),
    )]  # fmt: skip


def _scores(name: str, scorer: _Scorer, rows: int, held: tuple, place: Placement) -> Program:
    score = jax.jit(lambda params, tokens, ids: heads.scores(params, scorer.model, tokens, ids, ops.positions_of(ids), place))
    text = in_rows({k: array((rows, scorer.max_length), jnp.int32) for k in ("tokens", "segment_ids")}, place)
    return Program(name, score, (scorer.weights, *text.values()), held, gathered_bytes(scorer.model, place))


def _rollout(arm: _Arm, section: str, policy: Abstract, prompts: dict, held: tuple) -> Program:
    settings, model, place = arm.programs.rl, arm.model, arm.place
    count, limit = settings.train.batch_size // settings.rollout_chunks, settings.sampling.max_tokens
    sampling = jax.eval_shape(lambda: filters.traced(settings.sampling, (0,)))
    sampling = abstract_like(sampling, jax.tree.map(lambda _: place.replicated, sampling))
    text = in_rows({k: array((count, x.shape[1]), x.dtype) for k, x in prompts.items()}, place)
    numbers = single(jnp.uint32, place), single(jnp.uint32, place)
    arguments = (policy, *text.values(), *numbers, sampling, single(jnp.int32, place))
    read = (limit + 1) * gathered_bytes(model, place) + limit * _cache(model, count * settings.group_size, settings, place)
    chunks = [n for n in (2 * settings.rollout_chunks, 4 * settings.rollout_chunks) if settings.train.batch_size % n == 0]
    remedies = tuple((f"{section}.rollout_chunks={n}",) for n in chunks) + _more_tensor(place)
    return Program(f"{arm.name}: rollout", arm.programs.sampler.program, arguments, held, read, limit, remedies)


def _more_tensor(place: Placement) -> tuple[tuple[str, ...], ...]:
    """A remedy: half the fsdp axis, twice the tensor axis. The sampler's weights stay sharded over tensor only."""
    fsdp, tensor = place.mesh.shape["fsdp"], place.mesh.shape["tensor"]
    return ((f"mesh.fsdp={fsdp // 2}", f"mesh.tensor={tensor * 2}"),) if fsdp % 2 == 0 else ()


def _cache(model: ModelConfig, rows: int, settings: RlConfig, place: Placement) -> int:
    """Bytes of the KV cache per chip. Every decode step reads all of it."""
    length, tensor = settings.max_prompt_tokens + settings.sampling.max_tokens, place.mesh.shape["tensor"]
    own_heads = model.kv_heads // tensor if model.kv_heads % tensor == 0 else model.kv_heads
    kept = max(rows // place.row_shards, 1) * length * own_heads * model.head_dim
    return 2 * model.layers * kept * jnp.dtype(model.compute_dtype).itemsize


def _decoded(rows: int, limit: int, place: Placement) -> Decoded:
    decoded = Decoded(
        tokens=array((rows, limit), jnp.int32), mask=array((rows, limit), jnp.float32),
        logprobs=array((rows, limit), jnp.float32), finished=array((rows,), jnp.bool_),
    )  # fmt: skip
    return in_rows(decoded, place)


def _batch(programs: RlPrograms, scored: tuple, state: RlState, place: Placement) -> RlBatch:
    """The batch of the updates, with the shapes that the earlier programs give it."""
    decoded = scored[3]
    rows = decoded.finished.shape[0]
    part = jax.eval_shape(programs.score_rollout, *scored)
    rewards = array((rows,), jnp.float32), array((rows,), jnp.bool_)
    return in_rows(jax.eval_shape(programs.compute_advantages, part, decoded, *rewards, state.numbers)[0], place)
