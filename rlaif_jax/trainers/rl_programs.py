"""Builds everything that an RL stage compiles, and its state.

    programs = build(model_cfg, rl, trainable_of(lora), place, pad_id=tokenizer.pad_id)
    state, shardings = programs.init(policy_weights, key)
    step = make_step(programs, rollout, ...)

`build` is the only place that does this: the RL stages, `rlaif plan` and the tests use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlaif_jax.models import heads, transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sampling.sampler import make_sampler
from rlaif_jax.sharding.placement import Placement
from rlaif_jax.trainers.config import RlConfig
from rlaif_jax.trainers.offload import optimizers_on_host, with_optimizers_on_host
from rlaif_jax.trainers.optimizer import OptimizerConfig, make_optimizer
from rlaif_jax.trainers.rl import critic_loss, make_compute_advantages, make_score_rollout, rl_loss
from rlaif_jax.trainers.rl_types import RlBatch, RlPrograms, RlState
from rlaif_jax.trainers.rl_update import make_update_program
from rlaif_jax.trainers.trainable import Trainable, abstract_train_state, train_state
from rlaif_jax.trainers.update import TrainState, Update, make_update_fn, shardings_of, state_of


def build(cfg: ModelConfig, rl: RlConfig, trainable: Trainable, place: Placement, *, pad_id: int) -> RlPrograms:
    """The programs of one RL stage. Nothing is allocated or compiled yet.

    Args:
      cfg: shapes of policy and critic (the critic adds a value head).
      rl: the stage's settings.
      trainable: which weights of policy and critic are trained.
      place: mesh and rules. With an abstract mesh, everything works except `init`.
      pad_id: the token that pads a response after its end.
    """
    learner = partial(_learner, cfg=cfg, rl=rl, trainable=trainable, place=place)
    policy = learner(rl_loss, rl.train.optimizer, scalar=False)
    critic = None if rl.critic is None else learner(critic_loss, rl.critic.optimizer, scalar=True)
    abstract = _assembled(
        rl, policy.abstract, critic and critic.abstract, copy=lambda tree: tree,
        scalar=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place.replicated),
    )  # fmt: skip
    program = make_update_program(policy.update, critic and critic.update, rl, shardings_of(abstract), place)

    def update(state: RlState, batch: RlBatch, seed: int, number: int) -> tuple[RlState, dict]:
        updated, metrics = program(state.replace(frozen=None), batch, np.uint32(seed), np.int32(number), state.frozen)
        return updated.replace(frozen=state.frozen), metrics

    def init(params: Any, key: jax.Array, critic_params: Any = None) -> tuple[RlState, RlState]:
        critic_state = None
        if critic is not None:
            if critic_params is None:
                fresh = {"model": params, "head": heads.zero_head(cfg)}
                trained, _ = trainable.start(cfg, fresh, jax.random.fold_in(key, 1))
                critic_params = jax.tree.map(jnp.copy, trained)
            axes, _ = trainable.axes(cfg, scalar=True)
            critic_state, _ = state_of(critic_params, axes, critic.optimizer, place)
        policy_state, _ = train_state(trainable, cfg, params, policy.optimizer, place, key=key)
        state = _assembled(
            rl, policy_state, critic_state, copy=lambda tree: jax.tree.map(jnp.copy, tree),
            scalar=lambda x: jax.device_put(x, place.replicated),
        )  # fmt: skip
        shardings = shardings_of(abstract)
        if not rl.offload_optimizer:
            return state, shardings
        kept = optimizers_on_host(shardings)
        return jax.device_put(state, kept), kept

    axes = transformer.logical_axes(cfg)
    return RlPrograms(
        rl=rl, trainable=trainable,
        sampler=make_sampler(cfg, axes, place, group=rl.group_size, max_tokens=rl.sampling.max_tokens, pad_id=pad_id),
        score_rollout=make_score_rollout(cfg, rl, place), compute_advantages=make_compute_advantages(rl),
        update=with_optimizers_on_host(update) if rl.offload_optimizer else update, update_program=program,
        init=init, abstract=abstract,
    )  # fmt: skip


def _assembled(
    rl: RlConfig, policy: TrainState, critic: TrainState | None, *, copy: Callable[[Any], Any], scalar: Callable[[np.ndarray], Any]
) -> RlState:
    """The RL state, of arrays or of ShapeDtypeStructs. Add a new field of the state here and in `RlState`, nowhere else."""
    return RlState(
        params=policy.params, opt_state=policy.opt_state, step=policy.step, skipped=policy.skipped, frozen=policy.frozen,
        critic=None if critic is None else critic.replace(frozen=None),  # policy and critic share the frozen base
        reference=copy(policy.params) if rl.kl.refreshed else None,
        kl_coefficient=scalar(np.float32(rl.kl.coef)), reward_stats=scalar(np.zeros(3, np.float32)),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Learner:
    """Policy or critic: its optimizer, its update, and its state as ShapeDtypeStructs with shardings."""

    optimizer: optax.GradientTransformation
    update: Update
    abstract: TrainState


def _learner(
    loss: Callable, config: OptimizerConfig, *, cfg: ModelConfig, rl: RlConfig, trainable: Trainable, place: Placement,
    scalar: bool,
) -> _Learner:  # fmt: skip
    optimizer = make_optimizer(config, rl.updates)
    loss_fn = trainable.loss(partial(loss, cfg=cfg, rl=rl, place=place))
    update = make_update_fn(loss_fn, optimizer, rl.train.grad_accumulation)
    return _Learner(optimizer, update, abstract_train_state(trainable, cfg, optimizer, place, scalar))
