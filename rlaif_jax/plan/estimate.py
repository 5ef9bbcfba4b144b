"""`rlaif run --dry-run`: prints stages, models, mesh, estimated memory per device, and steps. Runs nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from rich.console import Console
from rich.table import Table

from rlaif_jax.config import RewardConfig, RunConfig, TrainConfig
from rlaif_jax.config.stages import CURATE, DPO, EVALUATE, FEEDBACK, PRINCIPLES, Stage, stages_of
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig, parameter_count
from rlaif_jax.models.pretrained import foreign_config, resolve
from rlaif_jax.plan.abstract import chip_bytes, full_weights
from rlaif_jax.plan.requests import print_requests
from rlaif_jax.runs.llms import planned_feedback
from rlaif_jax.runs.models import check_lengths
from rlaif_jax.sharding import MeshConfig, Placement, abstract_mesh, bytes_per_device, make_mesh
from rlaif_jax.sharding.mesh import AXES
from rlaif_jax.stages.pipeline import uneven_batches
from rlaif_jax.trainers.optimizer import make_optimizer
from rlaif_jax.trainers.rl import needs_reference
from rlaif_jax.trainers.trainable import abstract_params, abstract_train_state, trainable_of


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage of the plan.

    Attributes:
      name, model, parameters, steps: cells of the table.
      parts: estimated bytes per device, by what they hold.
      host: the offloaded ones of these: bytes that are in host memory while they are not needed.
    """

    name: str
    model: str
    parameters: int
    steps: str
    parts: Mapping[str, int]
    host: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def memory(self) -> int:
        """Peak bytes per device. Parts that are never on the device together count once: an offloaded optimizer state and the
        sampler's weights and cache; an offloaded reference and the gradients (of the same size)."""
        sampling = self.parts.get("sampler", 0) + self.parts.get("cache", 0)
        return sum(self.parts.values()) - min(self.host.get("optimizer", 0), sampling) - self.host.get("reference", 0)


def plan(cfg: RunConfig, place: Placement) -> list[StagePlan]:
    """The plan of every stage. Memory: weights, gradients and optimizer state of the trained model, activations with logits,
    other models on the device, and the sampler's copy of the weights and its KV cache."""
    model = planned_model(cfg)
    return [_stage_plan(cfg, stage, model, place) for stage in stages_of(cfg).values()]


def _stage_plan(cfg: RunConfig, stage: Stage, model: ModelConfig, place: Placement) -> StagePlan:
    if stage.kind not in ("train", "rl"):
        held = _held(cfg, stage, model, place)
        return StagePlan(stage.name, ", ".join(_HELD.get(stage, ())) or "-", 0, _rounds(cfg, stage), held or {"weights": 0})
    train, (sequences, length) = stage.train(cfg), _shape(cfg, stage)
    parts = _training_bytes(cfg, train, model, place)
    parts["activations"] = _activation_bytes(model, sequences // train.grad_accumulation, length, place)
    steps, host = f"{train.steps} x {train.batch_size}", {}
    if stage is DPO:
        parts["reference"] = _weight_bytes(model, place)
    if stage.kind == "rl":
        steps += f" x {cfg.rl_of(stage.name).group_size}"
        more, host = _arm_bytes(cfg, stage, parts, model, place)
        parts |= more | {"cache": _cache_bytes(model, train.batch_size * cfg.rl_of(stage.name).group_size, length, place)}
    return StagePlan(stage.name, _models(cfg, stage), parameter_count(model), steps, parts, host)


def _arm_bytes(
    cfg: RunConfig, stage: Stage, policy: Mapping[str, int], model: ModelConfig, place: Placement
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that an arm needs beside those of its policy: (on the device, of these offloaded to the host between uses)."""
    arm, rl, trainable = cfg.all_arms()[stage.name], cfg.rl_of(stage.name), trainable_of(cfg.lora)
    weights = _weight_bytes(model, place)
    parts, host, critic = {}, {}, {}
    if needs_reference(rl, trainable):
        parts["reference"] = weights
    elif rl.kl.refreshed:
        parts["reference"] = policy["adapter"] if trainable.frozen_base else weights
    if arm.reward_model:
        parts["reward model"] = _scalar_bytes(cfg, cfg.reward, model, place, shared=True)
    if arm.judge:
        parts |= _judge_parts(cfg, model, place, stage)
    if rl.critic is not None:
        critic = _training_bytes(cfg, dataclasses.replace(rl.train, optimizer=rl.critic.optimizer), model, place)
        parts["critic"] = sum(critic.values()) - (weights if trainable.frozen_base else 0)
    if rl.offload_optimizer:
        host["optimizer"] = policy["optimizer"] + critic.get("optimizer", 0)
    if rl.offload_reference:
        host["reference"] = weights
    return parts | {"sampler": _sampler_bytes(model, place)}, host


def planned_model(cfg: RunConfig) -> ModelConfig:
    """The run's model, with the vocabulary size of its tokenizer (which may not be trained yet)."""
    source = cfg.tokenizer.path or cfg.model.start
    tokens = Tokenizer.load(source).vocab_size if source else cfg.tokenizer.vocab_size
    found = resolve(cfg.model).with_vocab(tokens)
    check_lengths(cfg, found)
    return found


_HELD = {CURATE: ("policy", "feedback model"), PRINCIPLES: ("feedback model",), EVALUATE: ("policy", "graders")}
_JUDGED = 768  # tokens per row in the feedback model's largest batch: 256 of prompt (longer ones get fewer rows), 512 of reply


def _models(cfg: RunConfig, stage: Stage) -> str:
    """Names of the models that a training stage needs, for the table."""
    if stage.kind == "rl":
        sources = cfg.all_arms()[stage.name].sources
        return ", ".join(["policy", "reference", *("reward model" if source == "reward_model" else source for source in sources)])
    if stage is DPO:
        return "policy, reference"
    return "feedback model" if stage is FEEDBACK else "scalar model" if stage.leaves == "scalar" else "policy"


def _held(cfg: RunConfig, stage: Stage, model: ModelConfig, place: Placement) -> dict[str, int]:
    """Bytes of the models on the device in a stage that trains none. Evaluation holds one policy at a time."""
    policy = {"policy": _weight_bytes(model, place)}
    if stage is EVALUATE:
        graders = [scalar for scalar in (cfg.reward, cfg.grader) if scalar is not None]
        return policy | {"graders": sum(_scalar_bytes(cfg, scalar, model, place) for scalar in graders)}
    if stage not in (CURATE, PRINCIPLES):
        return {}
    return (policy if stage is CURATE else {}) | _judge_parts(cfg, model, place, stage)


def _scalar_bytes(cfg: RunConfig, settings: RewardConfig, model: ModelConfig, place: Placement, shared: bool = False) -> int:
    """Bytes of a reward model or grader. `shared`: a policy is on the device too, whose frozen base it may share."""
    if settings.folder:
        return _weight_bytes(foreign_config(settings.folder, cfg.model, scalar=True), place)
    if not (shared and cfg.shares_base(settings)):
        return _weight_bytes(model, place)
    return chip_bytes(abstract_params(trainable_of(cfg.lora), model, place, scalar=True)[0])


def _judge_parts(cfg: RunConfig, model: ModelConfig, place: Placement, stage: Stage) -> dict[str, int]:
    """Bytes of a feedback model on the mesh, and of its KV cache if it samples replies (not only log-probs of choices)."""
    feedback, model = cfg.feedback, planned_feedback(cfg, model)
    if model is None:
        return {}
    parts = {"feedback model": _int8_bytes(model, place) if feedback.weights == "int8" else _weight_bytes(model, place)}
    if stage.kind != "rl" or cfg.judge.mode not in ("soft", "checklist"):
        parts["feedback cache"] = _cache_bytes(model, feedback.batch_size, _JUDGED, place)
    return parts


def _rounds(cfg: RunConfig, stage: Stage) -> str:
    if stage is CURATE:
        return f"{cfg.curate.prompts or 'all'} prompts x {cfg.curate.candidates}"
    return f"{cfg.judge.game.rounds} rounds" if stage is PRINCIPLES else "-"


def _shape(cfg: RunConfig, stage: Stage) -> tuple[int, int]:
    """(sequences, tokens per sequence) of one update. A pair is two sequences."""
    settings = stage.section(cfg)
    if stage.kind == "rl":
        sequences = settings.train.batch_size * settings.group_size // settings.num_minibatches
        return sequences, settings.max_prompt_tokens + settings.sampling.max_tokens
    pairs = stage is DPO or (stage.leaves == "scalar" and settings.loss == "bradley_terry")
    return settings.train.batch_size * (2 if pairs else 1), settings.max_length


def _weight_bytes(model: ModelConfig, place: Placement) -> int:
    return chip_bytes(full_weights(model, place))


def _training_bytes(cfg: RunConfig, train: TrainConfig, model: ModelConfig, place: Placement) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state. With several micro-batches, gradients are float32."""
    trainable = trainable_of(cfg.lora)
    state = abstract_train_state(trainable, model, make_optimizer(train.optimizer, train.steps), place)
    parts = {"weights": _weight_bytes(model, place)}
    if trainable.frozen_base:
        parts["adapter"] = chip_bytes(state.params)
    parts["gradients"] = chip_bytes(jax.tree.map(partial(_summed, train), state.params))
    return parts | {"optimizer": chip_bytes(state.opt_state)}


def _summed(train: TrainConfig, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The gradient of a parameter: float32 if several micro-batches are summed, else in its dtype."""
    return jax.ShapeDtypeStruct(x.shape, jnp.float32 if train.grad_accumulation > 1 else x.dtype, sharding=x.sharding)


def _sampler_bytes(model: ModelConfig, place: Placement) -> int:
    """Bytes of the sampler's weights: gathered over fsdp, in the compute dtype or, for the layers' matrices, in 8 bits."""
    gathered, size = place.without("fsdp"), 2 if model.compute_dtype == "bfloat16" else 4
    whole = _weight_bytes(dataclasses.replace(model, param_dtype="float32"), gathered) // 4
    if model.rollout_quant == "float":
        return whole * size
    matrices = _matrices(model, gathered)
    return matrices + (whole - matrices) * size


def _matrices(model: ModelConfig, place: Placement) -> int:
    """Elements per device of the layers' matrices: their bytes in 8 bits (scales, under 0.1 %, are ignored)."""
    axes = {n: ("layers", *a) for n, (s, a, _) in transformer.layer_table(model).items() if len(s) == 2}
    shapes = {n: jax.ShapeDtypeStruct((model.layers, *transformer.layer_table(model)[n][0]), jnp.int8) for n in axes}
    return bytes_per_device(axes, shapes, dict(place.mesh.shape), place.rules)


def _int8_bytes(model: ModelConfig, place: Placement) -> int:
    """Bytes of a model with the layers' matrices in 8 bits and everything else in its own dtype."""
    return _weight_bytes(model, place) - _matrices(model, place) * (jnp.dtype(model.param_dtype).itemsize - 1)


def _activation_bytes(model: ModelConfig, rows: int, length: int, place: Placement) -> int:
    """Bytes of activations: residuals between layers (with remat "dots" also the matrix products of each layer), the inside of
    one layer (of all layers without remat), and one chunk of float32 logits."""
    rows = max(rows // place.row_shards, 1)
    size = 2 if model.compute_dtype == "bfloat16" else 4
    inside = rows * length * size * (4 * model.width + 3 * model.ffn) + 4 * rows * model.heads * length**2
    logits = 3 * 4 * rows * min(length, model.logit_chunk) * model.vocab_size
    between = model.width
    if model.remat == "dots":
        between += (model.heads + 2 * model.kv_heads) * model.head_dim + 2 * model.width + 2 * model.ffn
    return rows * length * between * size * model.layers + inside * (model.layers if model.remat == "none" else 1) + logits


def _cache_bytes(model: ModelConfig, rows: int, length: int, place: Placement) -> int:
    size = 2 if model.compute_dtype == "bfloat16" else 4
    head = model.head_dim + 4 if model.kv_cache == "int8" else model.head_dim * size  # with its float32 scale
    return 2 * model.layers * max(rows // place.row_shards, 1) * length * model.kv_heads * head


def planned_mesh(cfg: MeshConfig) -> Mesh | AbstractMesh:
    """The run's mesh, or an abstract mesh if it has more devices than this machine."""
    sizes = tuple(getattr(cfg, axis) for axis in AXES)
    if -1 in sizes and math.prod(size for size in sizes if size != -1) > len(jax.devices()):
        sizes = tuple(1 if size == -1 else size for size in sizes)  # -1 means "all remaining devices", but of another machine
        cfg = dataclasses.replace(cfg, **dict(zip(AXES, sizes, strict=True)))
    if -1 in sizes or math.prod(sizes) <= len(jax.devices()):
        return make_mesh(cfg)
    cfg.sizes(math.prod(sizes))  # UserError for sizes that are never allowed
    return abstract_mesh(cfg, math.prod(sizes))


def print_plan(cfg: RunConfig, console: Console) -> None:
    """Prints the plan as a table."""
    place = Placement.of(planned_mesh(cfg.mesh), cfg.mesh.rules)
    shape = ", ".join(f"{k} {v}" for k, v in place.mesh.shape.items())
    where = f"on {jax.devices()[0].platform}"
    if isinstance(place.mesh, AbstractMesh):
        where = f"({place.mesh.size} devices; this machine has {len(jax.devices())})"
    console.print(f"{cfg.name}: mesh {shape} {where}; nothing is run")
    table = Table("stage", "model", "parameters", "steps x batch", "memory per device (estimate)", "of which, MiB")
    for row in plan(cfg, place):
        parameters = f"{row.parameters:,}" if row.parameters else "-"
        memory = f"{row.memory / 2**20:,.0f} MiB" if row.memory else "-"
        parts = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in row.parts.items() if size >= 2**20)
        waiting = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in row.host.items())
        parts += f"; offloaded to host memory: {waiting}" if waiting else ""
        table.add_row(row.name, row.model, parameters, row.steps, memory, parts if len(row.parts) > 1 else "")
    console.print(table)
    print_requests(cfg, place, console)
    print_uneven(cfg, place, console)


def print_uneven(cfg: RunConfig, place: Placement, console: Console) -> None:
    """Prints which batch sizes a run with several processes would refuse."""
    for text in uneven_batches(cfg, stages_of(cfg).values(), place):
        console.print(f"with several processes: {text}", style="yellow", markup=False, soft_wrap=True)
