"""The jitted programs of a run with abstract arguments: the very functions that the stages call, and nothing allocated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlaif_jax.config import RunConfig
from rlaif_jax.models import heads, ops, transformer
from rlaif_jax.models import lora as lora_lib
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.plan.abstract import (
    Abstract,
    Program,
    array,
    chip_bytes,
    gathered_bytes,
    in_rows,
    policy_weights,
    scalar_weights,
    single,
    state_of,
    weights_of,
    without,
)  # fmt: skip
from rlaif_jax.plan.judging import judge_weights, verdicts
from rlaif_jax.sampling import filters
from rlaif_jax.sampling.decode import Decoded
from rlaif_jax.sampling.sampler import make_sampler
from rlaif_jax.sharding import Placement
from rlaif_jax.sharding.placement import abstract_like
from rlaif_jax.trainers import rl, sft
from rlaif_jax.trainers.adapter import adapted
from rlaif_jax.trainers.config import RlConfig, TrainConfig
from rlaif_jax.trainers.learn import make_learn
from rlaif_jax.trainers.optimizer import OptimizerConfig, make_optimizer
from rlaif_jax.trainers.reward import label_loss, pair_loss
from rlaif_jax.trainers.update import TrainState, make_update, make_update_fn


def build_programs(cfg: RunConfig, model: ModelConfig, place: Placement) -> list[Program]:
    """SFT (if any) and reward-model updates; rollout, log-probs, scores and updates of RL against the reward model; and the
    verdicts of a judge on the mesh, which takes part in the same rollouts and updates."""
    first = [_sft(cfg, model, place)] if cfg.sft is not None else []
    return [*first, _reward(cfg, model, place), *_rl(cfg, model, place)]


def _passes(model: ModelConfig) -> int:
    """How often an update reads the weights: forward and backward, and forward again where activations are recomputed."""
    return 2 if model.remat == "none" else 3


def _text(rows: tuple[int, ...], length: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: array((*rows, length), jnp.int32) for name in ("tokens", "segment_ids", "positions")}


def _more_accumulation(stage: str, train: TrainConfig) -> tuple[tuple[str, ...], ...]:
    options = (train.accumulation * 2, train.accumulation * 4)
    return tuple((f"{stage}.train.accumulation={n}",) for n in options if train.batch_size % n == 0)


def _update(
    name: str, train: TrainConfig, loss_fn: Any, lora: LoraConfig | None, batch: Any, model: ModelConfig, place: Placement
) -> Program:
    optimizer = make_optimizer(train.optimizer, train.steps)
    state, shardings = state_of(weights_of(lora, model, place, scalar=name == "reward"), optimizer, place)
    update = make_update(loss_fn if lora is None else adapted(loss_fn, lora), optimizer, shardings, train.accumulation)
    read = _passes(model) * train.accumulation * gathered_bytes(model, place)
    return Program(name, update, (state, in_rows(batch, place)), read=read, remedies=_more_accumulation(name, train))


def _sft(cfg: RunConfig, model: ModelConfig, place: Placement) -> Program:
    rows, length = cfg.sft.train.batch_size, cfg.sft.max_length
    batch = _text((rows,), length) | {"loss_mask": array((rows, length), jnp.float32)}
    loss_fn = partial(sft.sft_loss, cfg=model, place=place)
    return _update("sft", cfg.sft.train, loss_fn, cfg.lora, batch, model, place)


def _reward(cfg: RunConfig, model: ModelConfig, place: Placement) -> Program:
    rows, length = cfg.reward.train.batch_size, cfg.reward.max_length
    if cfg.reward.loss == "bradley_terry":
        batch = _text((rows, 2), length) | {"margin": array((rows,), jnp.float32)}
        loss_fn = partial(pair_loss, cfg=model, centring=cfg.reward.centring, place=place)
    else:
        batch = _text((rows,), length) | {"label": array((rows,), jnp.float32)}
        loss_fn = partial(label_loss, cfg=model, place=place)
    return _update("reward", cfg.reward.train, loss_fn, cfg.lora, batch, model, place)


def _rl(cfg: RunConfig, model: ModelConfig, place: Placement) -> list[Program]:
    settings, lora = cfg.rl, cfg.lora
    state, learn = _rl_state(settings, lora, model, place)
    needed = settings.kl.coefficient > 0 and not settings.kl.refresh and lora is None  # else the frozen base is the reference
    reference = policy_weights(model, place)[1] if needed else None
    view = rl.plain_view if lora is None else partial(lora_lib.apply_lora, lora=lora)
    whole = view(state.frozen, state.params)
    scorer, judge = _scorer(cfg, model, state, place), judge_weights(cfg, model, place)

    def rewarding(used: tuple) -> Abstract:  # reward model or judge: of the two stages the one that holds more
        return max(without(scorer, used), judge, key=chip_bytes)

    rows = settings.train.batch_size * settings.group
    prompts = {k: array((settings.train.batch_size, settings.max_prompt), jnp.int32) for k in ("tokens", "segment_ids")}
    temperature = single(jnp.float32, place)
    decoded = _decoded(rows, settings.sampling.max_tokens, place)
    annotate = rl.make_annotate(model, settings, place)
    critic = None if state.critic is None else view(rl.critic_base(state.frozen), state.critic.params)
    policy = whole if settings.policy.correction != "none" else None
    inputs = (policy, rl.reference_of(state, reference, view), critic)
    annotated = (*inputs, *in_rows(prompts, place).values(), decoded, temperature)
    batch = _batch(settings, annotate, annotated, decoded, place)
    weights, passes = gathered_bytes(model, place), sum(x is not None for x in inputs)
    score = jax.jit(lambda params, tokens, ids: heads.scores(params, model, tokens, ids, ops.positions_of(ids), place))
    text = in_rows({k: array((rows, cfg.reward.max_length), jnp.int32) for k in ("tokens", "segment_ids")}, place)
    accumulation = settings.train.accumulation
    updates = settings.epochs * settings.minibatches * (1 if critic is None else 2)
    more = [n for n in (2 * accumulation, 4 * accumulation) if rows // settings.minibatches % n == 0]
    number = single(jnp.uint32, place)
    kept, waiting = _between_updates(settings, state), None if settings.offload_reference else reference
    return [
        _rollout(settings, model, whole, prompts, (without(kept, (whole,)), waiting, rewarding((whole,))), place),
        Program("rl: log-probs", annotate, annotated, (without(kept, inputs), rewarding(inputs)), passes * weights),
        Program("rl: scores", score, (scorer, *text.values()), (without(kept, (scorer,)), waiting), weights),
        Program(
            "rl: update", learn, (state.replace(frozen=None), batch, number, single(jnp.int32, place), state.frozen),
            (waiting, rewarding((state,))),
            updates * accumulation * _passes(model) * weights,
            remedies=tuple((f"rl.train.accumulation={n}",) for n in more),
        ),
        *([verdicts(cfg, model, judge, (kept, waiting), place)] if judge else []),
    ]  # fmt: skip


def _rollout(settings: RlConfig, model: ModelConfig, policy: Abstract, prompts: dict, held: tuple, place: Placement) -> Program:
    count = settings.train.batch_size // settings.rollout_chunks
    limit = settings.sampling.max_tokens
    sampler = make_sampler(
        model, transformer.logical_axes(model), place, group=settings.group, max_tokens=limit, pad_id=0
    )  # fmt: skip
    sampling = jax.eval_shape(lambda: filters.traced(settings.sampling, (0,)))
    sampling = abstract_like(sampling, jax.tree.map(lambda _: place.replicated, sampling))
    text = in_rows({k: array((count, x.shape[1]), x.dtype) for k, x in prompts.items()}, place)
    numbers = single(jnp.uint32, place), single(jnp.uint32, place)
    arguments = (policy, *text.values(), *numbers, sampling, single(jnp.int32, place))
    read = (limit + 1) * gathered_bytes(model, place) + limit * _cache(model, count * settings.group, settings, place)
    chunks = [n for n in (2 * settings.rollout_chunks, 4 * settings.rollout_chunks) if settings.train.batch_size % n == 0]
    remedies = tuple((f"rl.rollout_chunks={n}",) for n in chunks) + _more_tensor(place)
    return Program("rl: rollout", sampler.compiled, arguments, held, read, limit, remedies)


def _more_tensor(place: Placement) -> tuple[tuple[str, ...], ...]:
    """Half the fsdp axis, twice the tensor axis: the sampler gathers its weights over fsdp alone."""
    fsdp, tensor = place.mesh.shape["fsdp"], place.mesh.shape["tensor"]
    return ((f"mesh.fsdp={fsdp // 2}", f"mesh.tensor={tensor * 2}"),) if fsdp % 2 == 0 else ()


def _cache(model: ModelConfig, rows: int, settings: RlConfig, place: Placement) -> int:
    """Bytes of the cache on one chip; every step reads all of it."""
    length, tensor = settings.max_prompt + settings.sampling.max_tokens, place.mesh.shape["tensor"]
    own_heads = model.kv_heads // tensor if model.kv_heads % tensor == 0 else model.kv_heads
    kept = max(rows // place.row_shards, 1) * length * own_heads * model.head_dim
    return 2 * model.layers * kept * jnp.dtype(model.compute_dtype).itemsize


def _decoded(rows: int, limit: int, place: Placement) -> Decoded:
    decoded = Decoded(
        tokens=array((rows, limit), jnp.int32), mask=array((rows, limit), jnp.float32),
        logprobs=array((rows, limit), jnp.float32), finished=array((rows,), jnp.bool_),
    )  # fmt: skip
    return in_rows(decoded, place)


def _batch(settings: RlConfig, annotate: Callable, annotated: tuple, decoded: Decoded, place: Placement) -> Abstract:
    """The batch of the updates, as annotate and experience would make it."""
    rows = decoded.finished.shape[0]
    part = jax.eval_shape(annotate, *annotated)
    batch = jax.eval_shape(
        rl.make_experience(settings), part, decoded, array((rows,), jnp.float32), array((rows,), jnp.bool_),
        array((), jnp.float32), array((3,), jnp.float32),
    )[0]  # fmt: skip
    return in_rows(batch, place)


def _scorer(cfg: RunConfig, model: ModelConfig, state: rl.RlState, place: Placement) -> Abstract:
    """The reward model: whole, or an adapter over the policy's base (see `RunModels.reward`)."""
    if not cfg.shares_base(cfg.reward):
        return scalar_weights(model, place)[1]
    return lora_lib.apply_lora({"model": state.frozen}, weights_of(cfg.lora, model, place, scalar=True).params, cfg.lora)


def _between_updates(settings: RlConfig, state: rl.RlState) -> rl.RlState:
    """What of the state is on the chips while nothing is updated."""
    if not settings.offload_optimizer:
        return state
    return state.replace(opt_state=None, critic=None if state.critic is None else state.critic.replace(opt_state=None))


def _rl_state(settings: RlConfig, lora: LoraConfig | None, model: ModelConfig, place: Placement) -> tuple[rl.RlState, Callable]:
    """Abstract state and the jitted updates of policy and critic, as `rl_stages` makes them."""

    def turn(loss_fn: Any, config: OptimizerConfig, scalar: bool) -> tuple[TrainState, TrainState, Any]:
        weights, optimizer = weights_of(lora, model, place, scalar), make_optimizer(config, settings.updates)
        loss_fn = partial(loss_fn, cfg=model, rl=settings, place=place)
        loss_fn = loss_fn if lora is None else adapted(loss_fn, lora)
        return *state_of(weights, optimizer, place), make_update_fn(loss_fn, optimizer, settings.train.accumulation)

    policy, policy_at, update = turn(rl.rl_loss, settings.train.optimizer, scalar=False)
    critic = critic_at = critic_update = None
    if settings.critic is not None:
        critic, critic_at, critic_update = turn(rl.critic_loss, settings.critic.optimizer, scalar=True)
        critic, critic_at = critic.replace(frozen=None), critic_at.replace(frozen=None)  # the policy's base is its own
    refreshed = settings.kl.refresh > 0 and settings.kl.coefficient > 0
    numbers = {"kl_coefficient": array((), jnp.float32), "reward_stats": array((3,), jnp.float32)}
    at = dict.fromkeys(numbers, place.replicated)
    reference = weights_of(lora, model, place, scalar=False).params if refreshed else None
    state = rl.RlState(**policy, critic=critic, reference=reference, **abstract_like(numbers, at))
    shardings = rl.RlState(**policy_at, critic=critic_at, reference=policy_at.params if refreshed else None, **at)
    return state, make_learn(update, critic_update, settings, shardings, place).compiled
