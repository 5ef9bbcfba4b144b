"""What each memory option changes in the plan, in bytes on one device."""

import dataclasses

import jax
import pytest
from rich.console import Console

from rlaif_jax.config import RunConfig
from rlaif_jax.config.overrides import overridden
from rlaif_jax.errors import UserError
from rlaif_jax.models.model_config import parameter_count, preset
from rlaif_jax.plan.estimate import plan, planned_mesh, print_plan
from rlaif_jax.sharding import MeshConfig, Placement, make_mesh

SHAPES = dataclasses.replace(preset("qwen2.5-0.5b"), param_dtype="bfloat16", remat="none")
NUMBERS = parameter_count(SHAPES)
MATRICES = 357_826_560  # of the blocks: 24 * (2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864)


def _parts(*settings: str, stage: str = "rl", **mesh: int) -> dict[str, int]:
    cfg = overridden(RunConfig(model=SHAPES), [*settings, "rl.policy.rollout_correction=token_truncate"])
    devices = jax.devices()[: max(mesh.values(), default=1)]
    place = Placement(make_mesh(MeshConfig(**{"data": 1} | mesh), devices))
    return next(dict(row.parts) for row in plan(cfg, place) if row.name == stage)


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        ((), 12, 12.01),
        (("rl.train.optimizer.masters=false",), 8, 8.01),
        (("rl.train.optimizer.moments=bfloat16",), 8, 8.01),
        (("rl.train.optimizer.moments=int8",), 6, 6.26),
        (("rl.train.optimizer.moments=factored",), 6, 6.1),
        (("rl.train.optimizer.moments=int8", "rl.train.optimizer.masters=false"), 2, 2.26),
    ],
)
def test_bytes_per_parameter_of_the_optimiser(settings, least, most):
    parts = _parts(*settings)
    assert least * NUMBERS <= parts["optimizer"] <= most * NUMBERS
    assert parts["weights"] == parts["reference"] == parts["reward model"] == 2 * NUMBERS
    other = _parts(*(s.replace("rl.", "sft.", 1) for s in settings), stage="sft")
    assert other["optimizer"] == parts["optimizer"]


def test_weights_and_gradients_follow_their_settings():
    assert _parts("model.param_dtype=float32")["weights"] == 4 * NUMBERS
    assert _parts()["gradients"] == 2 * NUMBERS
    accumulated = _parts("rl.train.grad_accumulation=2")
    assert accumulated["gradients"] == 4 * NUMBERS, "summed in float32"
    half = _parts("rl.train.grad_accumulation=2")["activations"] / _parts()["activations"]
    assert half == pytest.approx(0.5)


def test_less_is_kept_with_more_recomputation():
    full, dots, none = (_parts(f"model.remat={kind}")["activations"] for kind in ("full", "dots", "none"))
    assert full < dots < none


def test_sampling_in_8_bits():
    assert _parts()["sampler"] == 2 * NUMBERS
    assert _parts("model.rollout_quant=int8")["sampler"] == 2 * NUMBERS - MATRICES
    assert _parts("model.kv_cache=int8")["cache"] / _parts()["cache"] == (64 + 4) / 128


def test_two_devices_hold_half_of_what_is_split():
    one, two = _parts(), _parts(fsdp=2)
    for name in ("weights", "gradients", "optimizer", "reference", "reward model"):
        assert two[name] == pytest.approx(one[name] / 2, rel=0.01), name
    assert two["sampler"] == one["sampler"], "gathered over fsdp"


def test_no_reference_is_counted_where_there_is_none():
    assert "reference" not in _parts("rl.kl.coef=0.0")


def test_a_mesh_that_this_machine_cannot_fill():
    mesh = planned_mesh(MeshConfig(fsdp=16, tensor=2))
    assert tuple(mesh.shape.values()) == (1, 16, 2, 1), "data, -1, is 1 where nobody can say how many devices are left"
    with pytest.raises(UserError, match="needs 5 devices, but there are 8"):
        planned_mesh(MeshConfig(fsdp=5))
    assert planned_mesh(MeshConfig(fsdp=2)).shape["data"] == len(jax.devices()) // 2


def test_the_dry_run_tells_which_batches_several_processes_would_refuse(capsys):
    cfg = overridden(RunConfig(model=SHAPES), ["mesh.data=4", "mesh.fsdp=4", "sft.train.batch_size=24"])
    print_plan(cfg, Console(width=200))
    said = [line for line in capsys.readouterr().out.splitlines() if "several processes" in line]
    assert any("sft.train.batch_size is 24, and must be a multiple of the 16 row shards" in line for line in said)
    assert not any("reward" in line for line in said)
