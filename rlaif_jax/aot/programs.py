"""The jitted programs of a run with abstract arguments: the very functions that the stages call, and nothing allocated."""

from __future__ import annotations

import dataclasses
import math
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
from rlaif_jax.sampling import filters
from rlaif_jax.sampling.decode import Decoded
from rlaif_jax.sampling.rollout import make_sampler
from rlaif_jax.sharding import Placement
from rlaif_jax.trainers import rl, sft
from rlaif_jax.trainers.adapter import adapted
from rlaif_jax.trainers.learn import make_learn
from rlaif_jax.trainers.optimizer import OptimizerConfig, make_optimizer
from rlaif_jax.trainers.reward import label_loss, pair_loss
from rlaif_jax.trainers.settings import RlConfig, TrainConfig
from rlaif_jax.trainers.update import TrainState, make_update, make_update_fn, state_shardings

Abstract = Any  # a tree of jax.ShapeDtypeStruct with shardings


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled function of a run.

    Attributes:
      name: "sft", "reward", "rl: rollout", "rl: log-probs", "rl: scores" or "rl: update".
      function: jitted; `function.trace(*arguments)`.
      held: what else the stage keeps on the chips meanwhile.
      read: bytes of weights and cache that one chip reads over and over beside arguments and results: the least that a
        program of this kind can do, for the roofline.
      loop_trips: how often a loop runs whose end depends on data (the response's limit).
      remedies: settings to try where it does not fit, best first.
    """

    name: str
    function: Callable
    arguments: tuple
    held: tuple[Abstract, ...] = ()
    read: float = 0.0
    loop_trips: int = 1
    remedies: tuple[tuple[str, ...], ...] = ()


def chip_bytes(tree: Abstract) -> int:
    """Bytes that one chip holds of a tree with shardings; what stands in it more than once (a base that serves several
    models) is held once."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values()
    return sum(jnp.dtype(x.dtype).itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)


def build_programs(cfg: RunConfig, model: ModelConfig, place: Placement) -> list[Program]:
    """SFT (if any) and reward-model updates, and rollout, log-probs, scores and updates of RL against the reward model."""
    first = [_sft(cfg, model, place)] if cfg.sft is not None else []
    return [*first, _reward(cfg, model, place), *_rl(cfg, model, place)]


def _on(tree: Any, shardings: Any) -> Abstract:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _rows(tree: Any, place: Placement) -> Abstract:
    """Arrays whose first axis is rows, split over the mesh."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place.rows(x.shape[0])), tree)


def _array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _scalar(dtype: Any, place: Placement) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), dtype, sharding=place.replicated)


def _policy(model: ModelConfig, place: Placement) -> tuple[Any, Abstract]:
    axes = transformer.logical_axes(model)
    weights = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
    return axes, _on(weights, place.tree(axes, weights))


def _scalar_model(model: ModelConfig, place: Placement) -> tuple[Any, Abstract]:
    axes = heads.logical_axes(model)
    weights = jax.eval_shape(lambda: heads.init(model, jax.random.key(0)))
    return axes, _on(weights, place.tree(axes, weights))


@dataclasses.dataclass(frozen=True)
class _Weights:
    """What a stage trains, and the weights under it that it does not (None: it trains all)."""

    axes: Any
    params: Abstract
    frozen: Abstract | None = None


def _weights(lora: LoraConfig | None, model: ModelConfig, place: Placement, scalar: bool) -> _Weights:
    """Of a policy or a scalar model: everything, or an adapter (and the head) over a frozen decoder."""
    base = _policy(model, place)[1]
    if lora is None:
        return _Weights(*(_scalar_model(model, place) if scalar else _policy(model, place)))
    axes = (heads.adapter_axes if scalar else lora_lib.logical_axes)(model, lora)
    init = heads.adapter_init if scalar else lora_lib.init
    trained = jax.eval_shape(lambda: init(model, lora, jax.random.key(0)))
    return _Weights(axes, _on(trained, place.tree(axes, trained)), {"model": base} if scalar else base)


def _state(weights: _Weights, optimizer: Any, place: Placement) -> tuple[TrainState, TrainState]:
    """The abstract twin of `update.state_of` and `adapter.adapter_state`."""

    def build(params: Any) -> TrainState:
        return TrainState(params=params, opt_state=optimizer.init(params), step=jnp.int32(0), skipped=jnp.int32(0))

    abstract = jax.eval_shape(build, weights.params)
    shardings = state_shardings(abstract, weights.axes, place)
    frozen_at = jax.tree.map(lambda x: x.sharding, weights.frozen)
    return _on(abstract, shardings).replace(frozen=weights.frozen), shardings.replace(frozen=frozen_at)


def _gathered(model: ModelConfig, place: Placement) -> int:
    """Bytes of the weights that one chip reads in one pass: compute dtype, gathered over fsdp, split over tensor."""
    weights = _policy(model, place.without("fsdp"))[1]
    return chip_bytes(weights) * jnp.dtype(model.compute_dtype).itemsize // jnp.dtype(model.param_dtype).itemsize


def _passes(model: ModelConfig) -> int:
    """How often an update reads the weights: forward and backward, and forward again where activations are recomputed."""
    return 2 if model.remat == "none" else 3


def _text(rows: tuple[int, ...], length: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: _array((*rows, length), jnp.int32) for name in ("tokens", "segment_ids", "positions")}


def _more_accumulation(stage: str, train: TrainConfig) -> tuple[tuple[str, ...], ...]:
    options = (train.accumulation * 2, train.accumulation * 4)
    return tuple((f"{stage}.train.accumulation={n}",) for n in options if train.batch_size % n == 0)


def _update(
    name: str, train: TrainConfig, loss_fn: Any, lora: LoraConfig | None, batch: Any, model: ModelConfig, place: Placement
) -> Program:
    optimizer = make_optimizer(train.optimizer, train.steps)
    state, shardings = _state(_weights(lora, model, place, scalar=name == "reward"), optimizer, place)
    update = make_update(loss_fn if lora is None else adapted(loss_fn, lora), optimizer, shardings, train.accumulation)
    read = _passes(model) * train.accumulation * _gathered(model, place)
    return Program(name, update, (state, _rows(batch, place)), read=read, remedies=_more_accumulation(name, train))


def _sft(cfg: RunConfig, model: ModelConfig, place: Placement) -> Program:
    rows, length = cfg.sft.train.batch_size, cfg.sft.max_length
    batch = _text((rows,), length) | {"loss_mask": _array((rows, length), jnp.float32)}
    loss_fn = partial(sft.sft_loss, cfg=model, place=place)
    return _update("sft", cfg.sft.train, loss_fn, cfg.lora, batch, model, place)


def _reward(cfg: RunConfig, model: ModelConfig, place: Placement) -> Program:
    rows, length = cfg.reward.train.batch_size, cfg.reward.max_length
    if cfg.reward.loss == "bradley_terry":
        batch = _text((rows, 2), length) | {"margin": _array((rows,), jnp.float32)}
        loss_fn = partial(pair_loss, cfg=model, centring=cfg.reward.centring, place=place)
    else:
        batch = _text((rows,), length) | {"label": _array((rows,), jnp.float32)}
        loss_fn = partial(label_loss, cfg=model, place=place)
    return _update("reward", cfg.reward.train, loss_fn, cfg.lora, batch, model, place)


def _rl(cfg: RunConfig, model: ModelConfig, place: Placement) -> list[Program]:
    settings, lora = cfg.rl, cfg.lora
    state, learn = _rl_state(settings, lora, model, place)
    needed = settings.kl.coefficient > 0 and not settings.kl.refresh and lora is None  # else the frozen base is the reference
    reference = _policy(model, place)[1] if needed else None
    view = rl.plain_view if lora is None else partial(lora_lib.attach, lora=lora)
    whole = view(state.frozen, state.params)
    scorer = _scorer(cfg, model, state, place)
    rows = settings.train.batch_size * settings.group
    prompts = {k: _array((settings.train.batch_size, settings.max_prompt), jnp.int32) for k in ("tokens", "segment_ids")}
    temperature = _scalar(jnp.float32, place)
    decoded = _decoded(rows, settings.sampling.max_tokens, place)
    annotate = rl.make_annotate(model, settings, place)
    critic = None if state.critic is None else view(rl.critic_base(state.frozen), state.critic.params)
    policy = whole if settings.policy.correction != "none" else None
    inputs = (policy, rl.reference_of(state, reference, view), critic)
    annotated = (*inputs, *_rows(prompts, place).values(), decoded, temperature)
    batch = _batch(settings, annotate, annotated, decoded, place)
    weights, passes = _gathered(model, place), sum(x is not None for x in inputs)
    score = jax.jit(lambda params, tokens, ids: heads.scores(params, model, tokens, ids, ops.positions_of(ids), place))
    text = _rows({k: _array((rows, cfg.reward.max_length), jnp.int32) for k in ("tokens", "segment_ids")}, place)
    accumulation = settings.train.accumulation
    updates = settings.epochs * settings.minibatches * (1 if critic is None else 2)
    more = [n for n in (2 * accumulation, 4 * accumulation) if rows // settings.minibatches % n == 0]
    number = _scalar(jnp.uint32, place)
    kept, waiting = _between_updates(settings, state), None if settings.offload_reference else reference
    return [
        _rollout(settings, model, whole, prompts, (_without(kept, (whole,)), waiting, _without(scorer, (whole,))), place),
        Program("rl: log-probs", annotate, annotated, (_without(kept, inputs), _without(scorer, inputs)), passes * weights),
        Program("rl: scores", score, (scorer, *text.values()), (_without(kept, (scorer,)), waiting), weights),
        Program(
            "rl: update", learn, (state.replace(frozen=None), batch, number, _scalar(jnp.int32, place), state.frozen),
            (waiting, _without(scorer, (state,))),
            updates * accumulation * _passes(model) * weights,
            remedies=tuple((f"rl.train.accumulation={n}",) for n in more),
        ),
    ]  # fmt: skip


def _rollout(settings: RlConfig, model: ModelConfig, policy: Abstract, prompts: dict, held: tuple, place: Placement) -> Program:
    count = settings.train.batch_size // settings.rollout_chunks
    limit = settings.sampling.max_tokens
    sampler = make_sampler(
        model, transformer.logical_axes(model), place, group=settings.group, max_tokens=limit, pad_id=0
    )  # fmt: skip
    sampling = jax.eval_shape(lambda: filters.traced(settings.sampling, (0,)))
    sampling = _on(sampling, jax.tree.map(lambda _: place.replicated, sampling))
    text = _rows({k: _array((count, x.shape[1]), x.dtype) for k, x in prompts.items()}, place)
    numbers = _scalar(jnp.uint32, place), _scalar(jnp.uint32, place)
    arguments = (policy, *text.values(), *numbers, sampling, _scalar(jnp.int32, place))
    read = (limit + 1) * _gathered(model, place) + limit * _cache(model, count * settings.group, settings, place)
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
        tokens=_array((rows, limit), jnp.int32), mask=_array((rows, limit), jnp.float32),
        logprobs=_array((rows, limit), jnp.float32), finished=_array((rows,), jnp.bool_),
    )  # fmt: skip
    return _rows(decoded, place)


def _batch(settings: RlConfig, annotate: Callable, annotated: tuple, decoded: Decoded, place: Placement) -> Abstract:
    """The batch of the updates, as annotate and experience would make it."""
    rows = decoded.finished.shape[0]
    part = jax.eval_shape(annotate, *annotated)
    batch = jax.eval_shape(
        rl.make_experience(settings), part, decoded, _array((rows,), jnp.float32), _array((rows,), jnp.bool_),
        _array((), jnp.float32), _array((3,), jnp.float32),
    )[0]  # fmt: skip
    return _rows(batch, place)


def _scorer(cfg: RunConfig, model: ModelConfig, state: rl.RlState, place: Placement) -> Abstract:
    """The reward model: whole, or an adapter over the policy's base (see `RunModels.reward`)."""
    if not cfg.shares_base("reward"):
        return _scalar_model(model, place)[1]
    return lora_lib.attach({"model": state.frozen}, _weights(cfg.lora, model, place, scalar=True).params, cfg.lora)


def _without(tree: Abstract, others: tuple) -> Abstract:
    """The leaves of the tree that are not in `others`."""
    used = {id(leaf) for leaf in jax.tree.leaves(others)}
    return [leaf for leaf in jax.tree.leaves(tree) if id(leaf) not in used]


def _between_updates(settings: RlConfig, state: rl.RlState) -> rl.RlState:
    """What of the state is on the chips while nothing is updated."""
    if not settings.offload_optimizer:
        return state
    return state.replace(opt_state=None, critic=None if state.critic is None else state.critic.replace(opt_state=None))


def _rl_state(settings: RlConfig, lora: LoraConfig | None, model: ModelConfig, place: Placement) -> tuple[rl.RlState, Callable]:
    """Abstract state and the jitted updates of policy and critic, as `rl_stages` makes them."""

    def turn(loss_fn: Any, config: OptimizerConfig, scalar: bool) -> tuple[TrainState, TrainState, Any]:
        weights, optimizer = _weights(lora, model, place, scalar), make_optimizer(config, settings.updates)
        loss_fn = partial(loss_fn, cfg=model, rl=settings, place=place)
        loss_fn = loss_fn if lora is None else adapted(loss_fn, lora)
        return *_state(weights, optimizer, place), make_update_fn(loss_fn, optimizer, settings.train.accumulation)

    policy, policy_at, update = turn(rl.rl_loss, settings.train.optimizer, scalar=False)
    critic = critic_at = critic_update = None
    if settings.critic is not None:
        critic, critic_at, critic_update = turn(rl.critic_loss, settings.critic.optimizer, scalar=True)
        critic, critic_at = critic.replace(frozen=None), critic_at.replace(frozen=None)  # the policy's base is its own
    refreshed = settings.kl.refresh > 0 and settings.kl.coefficient > 0
    numbers = {"kl_coefficient": _array((), jnp.float32), "reward_stats": _array((3,), jnp.float32)}
    at = dict.fromkeys(numbers, place.replicated)
    reference = _weights(lora, model, place, scalar=False).params if refreshed else None
    state = rl.RlState(**policy, critic=critic, reference=reference, **_on(numbers, at))
    shardings = rl.RlState(**policy_at, critic=critic_at, reference=policy_at.params if refreshed else None, **at)
    return state, make_learn(update, critic_update, settings, shardings, place).compiled
