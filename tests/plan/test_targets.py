"""The configs of real accelerators: every one loads, divides, and is estimated to fit the memory of its chip."""

import pytest
from jax.sharding import AbstractMesh

from rlaif_jax.cli import main
from rlaif_jax.config import load_config
from rlaif_jax.config.overrides import overridden
from rlaif_jax.configs._targets import TARGETS, greetings_7b
from rlaif_jax.errors import UserError
from rlaif_jax.models.model_config import parameter_count
from rlaif_jax.plan.estimate import plan, planned_mesh
from rlaif_jax.sharding import MeshConfig, Placement
from tests.config.test_config import ROOT

CONFIGS = sorted((ROOT / "configs").glob("[!_]*.py"))
REAL = [path for path in CONFIGS if path.name.startswith("qwen25_")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_has_a_plan(path):
    cfg = load_config(path)
    rows = {row.name: row for row in plan(cfg, Placement(planned_mesh(cfg.mesh)))}
    assert {"sft", "reward", "rl", "evaluate"} <= set(rows)
    assert all(rows[name].memory > 0 and rows[name].parameters > 0 for name in ("sft", "reward", "rl"))


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.stem)
def test_a_real_one_divides_and_fits(path):
    cfg = load_config(path)
    target = next(t for t in TARGETS.values() if t.mesh == cfg.mesh)
    place = Placement(planned_mesh(cfg.mesh))
    assert isinstance(place.mesh, AbstractMesh) or place.mesh.size <= 8
    assert parameter_count(cfg.model) == 7_615_616_512
    for stage in ("rl", "rl_judge"):
        rl = cfg.rl_of(stage)
        assert rl.train.batch_size * rl.group_size == 128 and rl.updates == 1000
        assert rl.train.batch_size * rl.group_size // rl.num_minibatches % place.row_shards == 0
    assert cfg.rl.train.batch_size % place.row_shards == 0
    for settings in (cfg.sft, cfg.reward):
        assert settings.train.batch_size // settings.train.grad_accumulation % place.row_shards == 0
    used = max(row.memory for row in plan(cfg, place))
    assert 0.05 * target.memory < used < 0.9 * target.memory


def test_the_docstring_names_the_accelerator_and_says_that_nothing_was_run():
    for path in REAL:
        text = path.read_text(encoding="utf-8")
        cfg = load_config(path)
        target = next(t for t in TARGETS.values() if t.mesh == cfg.mesh and (not t.accelerator or t.accelerator in text))
        assert target.accelerator in text and "Not run on these devices yet" in text


def test_ppo_counts_its_critic():
    place = Placement(planned_mesh(TARGETS["v5e-64"].mesh))
    grpo, ppo = (next(r for r in plan(greetings_7b("v5e-64", a), place) if r.name == "rl") for a in ("grpo", "ppo"))
    critic = 4 * 4 * parameter_count(greetings_7b("v5e-64").model) / 64  # weights, gradients and two moments in float32
    assert critic < ppo.memory - grpo.memory < 1.01 * critic  # norms and biases are whole on every chip


def test_dry_run_on_a_machine_without_the_devices(capsys, tmp_path):
    config = str(ROOT / "configs/qwen25_7b_grpo_v5e_64.py")
    assert main(["run", config, "--out", str(tmp_path / "x"), "--dry-run", "--set", "judge=none", "--set", "feedback=none"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "fsdp 16" in text and "64 devices; this machine has 8" in text and "rl_judge" not in text


def test_a_mesh_that_no_machine_has_is_refused():
    with pytest.raises(UserError, match="context is 2; expected 1"):
        planned_mesh(MeshConfig(data=64, context=2))
    with pytest.raises(UserError, match="there are 8"):
        planned_mesh(overridden(greetings_7b("gpu-8"), ["mesh.fsdp=3"]).mesh)
