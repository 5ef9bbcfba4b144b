"""What waits on the host: which shardings, which settings are refused, and what the plans count of it."""

import dataclasses
import io
import types

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from rlaif_jax.algorithms.kl import KlConfig
from rlaif_jax.configs._targets import greetings_7b
from rlaif_jax.errors import UserError
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import parameter_count
from rlaif_jax.plan.abstract import chip_bytes
from rlaif_jax.plan.estimate import plan, planned_mesh, planned_model, print_plan
from rlaif_jax.plan.programs import build_programs
from rlaif_jax.runs.folder import Run
from rlaif_jax.sharding import Placement
from rlaif_jax.sharding.memory import on_device, on_host, require_host_memory
from rlaif_jax.stages import pipeline
from tests import tiny


def _offloading(cfg):
    rl = dataclasses.replace(cfg.rl, offload_optimizer=True, offload_reference=True)
    return dataclasses.replace(cfg, rl=rl, arms={}, judge=None)


def test_only_the_memory_kind_changes(eight_devices):
    spec = PartitionSpec("fsdp", "tensor")
    here = NamedSharding(eight_devices.mesh, spec)
    there = on_host({"w": here})["w"]
    assert (there.spec, there.mesh, there.memory_kind) == (spec, here.mesh, "pinned_host")
    back = on_device({"w": there, "other": here})
    assert back["w"].spec == spec and back["w"].memory_kind == jax.devices()[0].default_memory().kind
    assert back["other"] is here
    x = jax.device_put(np.arange(16.0).reshape(4, 4), here)
    away = jax.device_put(x, there)
    assert away.sharding.memory_kind == "pinned_host" and away.addressable_shards[0].data.shape == (2, 2)
    np.testing.assert_array_equal(jax.device_put(away, back["w"]), x)


def test_a_backend_without_that_memory_is_named(tmp_path):
    device = types.SimpleNamespace(platform="abacus", addressable_memories=lambda: [types.SimpleNamespace(kind="device")])
    mesh = types.SimpleNamespace(devices=np.array([[device]]))
    with pytest.raises(UserError, match=r"rl\.offload_optimizer needs .* pinned_host .* abacus backend have device: set it to"):
        require_host_memory(mesh, "rl.offload_optimizer")
    require_host_memory(types.SimpleNamespace(devices=np.array(jax.devices())), "rl.offload_optimizer")
    x = Run(_offloading(tiny.config()), tmp_path, types.SimpleNamespace(mesh=mesh), Console(quiet=True))
    with pytest.raises(UserError, match="needs devices with pinned_host memory"):
        pipeline.run(x)


def test_a_reference_that_is_none_or_moves_cannot_wait():
    cfg = tiny.config()
    for kl in (KlConfig(0.0), KlConfig(0.1, ref_sync_steps=2)):
        with pytest.raises(UserError, match="no reference that stays"):
            dataclasses.replace(cfg.rl, kl=kl, offload_reference=True)
    with pytest.raises(UserError, match="under lora"):
        dataclasses.replace(_offloading(cfg), lora=LoraConfig())


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_dry_run_counts_what_is_on_the_device_together(algorithm):
    cfg = greetings_7b("v5e-64", algorithm)
    place = Placement(planned_mesh(cfg.mesh))
    plain, waiting = (next(r for r in plan(c, place) if r.name == "rl") for c in (cfg, _offloading(cfg)))
    weights = 4 * parameter_count(cfg.model) / 64
    moments = 2 * weights * (1 if algorithm == "grpo" else 2)
    assert waiting.host == {"optimiser": pytest.approx(moments, rel=0.01), "reference": pytest.approx(weights, rel=0.01)}
    assert waiting.parts == plain.parts and plain.host == {}
    sampling = plain.parts["sampler"] + plain.parts["cache"]
    saved = waiting.host["reference"] + min(waiting.host["optimiser"], sampling)
    assert plain.memory - waiting.memory == saved
    console = Console(width=400, record=True, file=io.StringIO())
    print_plan(_offloading(cfg), console)
    assert f"these wait on the host: optimiser {moments / 2**20:,.0f}"[:-2] in console.export_text()


def test_the_compiled_plan_holds_less_but_in_the_update():
    cfg = greetings_7b("v5e-64", "ppo")
    place, model = Placement(planned_mesh(cfg.mesh)), planned_model(cfg)
    kept = [{p.name: chip_bytes(p.held) + chip_bytes(p.arguments) for p in build_programs(c, model, place)}
            for c in (cfg, _offloading(cfg))]  # fmt: skip
    weights = 4 * parameter_count(cfg.model) / 64
    saved = {"rl: rollout": 5, "rl: log-probs": 4, "rl: scores": 5, "rl: update": 1, "sft": 0}
    for name, models in saved.items():
        assert kept[0][name] - kept[1][name] == pytest.approx(models * weights, rel=0.01, abs=1e6), name
