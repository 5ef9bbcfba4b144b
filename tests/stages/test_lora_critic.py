"""PPO with adapters: the critic is an adapter and a head over the policy's base, is saved, and goes on where it was."""

import dataclasses

import jax
import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.algorithms.kl import KlConfig
from rlaif_jax.errors import UserError
from rlaif_jax.models import heads, lora
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.plan.estimate import plan
from rlaif_jax.plan.programs import build_programs
from rlaif_jax.rewards.base import Sample
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels
from rlaif_jax.runs.rewards import RunRewards
from rlaif_jax.runs.samples import SampleTable
from rlaif_jax.sharding import MeshConfig, Placement, make_mesh
from rlaif_jax.stages import pipeline
from rlaif_jax.stages import rl as rl_stages
from rlaif_jax.trainers.config import CriticConfig
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.optimizer import OptimizerConfig
from rlaif_jax.trainers.rl_programs import build
from tests import tiny
from tests.trainers.states import restore_all

pytestmark = pytest.mark.slow  # minutes of compiling; tests/test_lora_run.py and tests/test_ppo_dpo.py are the quick halves
QUIET = Console(quiet=True)
LORA = LoraConfig({"layers/(q|v|up)": 4}, alpha=8.0)


def _config(init="reward"):
    cfg = tiny.config(steps=4, checkpoint_every=2)
    critic = CriticConfig(OptimizerConfig(1e-2, "constant"), init=init)
    rl = dataclasses.replace(cfg.rl, critic=critic, kl=KlConfig(0.05, "reward", "k1"), group_size=2)
    return dataclasses.replace(cfg, grader=None, lora=LORA, rl=rl)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """tokenizer, SFT, reward model and PPO, all of them adapters, on one device."""
    place = Placement(make_mesh(MeshConfig(), jax.devices()[:1]))
    x = Run(_config(), tmp_path_factory.mktemp("lora_ppo") / "run", place, QUIET)
    pipeline.run(x, ("tokenizer", "sft", "reward", "rl"))
    return x


def _saved(x: Run) -> dict:
    """All of the last checkpoint of RL."""
    step, tree = restore_all(x.folder("rl") / "checkpoints")
    assert step == 4
    return tree


def _rewards(x, models):
    return RunRewards(x, models, RunLlms(x, models))


def _again(x: Run, folder, cfg) -> Run:
    """A run of another config on the same SFT policy and reward model."""
    again = dataclasses.replace(x, out=folder / "run", cfg=cfg)
    again.out.mkdir()
    for stage in ("tokenizer", "sft", "reward"):
        (again.out / stage).symlink_to(x.folder(stage))
    return again


def _state(x: Run):
    models = RunModels(x)
    programs = build(models.config, x.cfg.rl, models.trainable, x.place, pad_id=models.tokenizer.pad_id)
    return rl_stages._start(x, models, programs)[0]


def test_the_critic_starts_as_the_reward_model_over_the_policys_base(run):
    models, state = RunModels(run), _state(run)
    tokens = np.random.default_rng(0).integers(1, 500, (2, 10)).astype(np.int32)
    inputs = models.config, tokens, np.ones_like(tokens), np.tile(np.arange(10, dtype=np.int32), (2, 1))
    critic = lora.apply_lora({"model": state.frozen}, state.critic.params, LORA)
    found, expected = heads.values(critic, *inputs), heads.values(models.scalar("reward"), *inputs)
    assert float(np.abs(expected).max()) > 0
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert state.critic.frozen is None, "one base is in memory"


def test_it_learns_beside_a_base_that_is_in_no_checkpoint(run):
    saved, start = _saved(run)["rest"]["critic"], _state(run).critic
    assert jax.tree.structure(saved["params"]) == jax.tree.structure(start.params)
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), saved["params"], start.params)
    assert min(jax.tree.leaves(moved)) > 1e-3, moved
    assert "frozen" not in saved or saved["frozen"] is None
    rows = [r for r in read_metrics(run.folder("rl") / "metrics.jsonl") if "critic/loss" in r]
    assert len(rows) == 4 and all(r["critic/skipped"] == 0 and r["critic/grad_norm"] > 0 for r in rows)
    assert abs(rows[0]["kl_sequence"]) < 1e-5, "policy and reference share the base"


def test_an_interrupted_stage_ends_with_the_same_bytes(run, tmp_path, monkeypatch):
    again, show = _again(run, tmp_path, run.cfg), SampleTable.show

    def fail_at_three(self, step, *rest):
        if step == 3:
            raise KeyboardInterrupt
        show(self, step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(SampleTable, "show", fail_at_three)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(again, ["rl"])
    pipeline.run(again, ["rl"])
    jax.tree.map(np.testing.assert_array_equal, _saved(again), _saved(run))


def test_the_reward_model_reads_the_policys_base(run, tmp_path, monkeypatch):
    """One base in memory for all four: it is loaded once, and reading it while it is trained over gives the same run."""
    again, models, loaded = _again(run, tmp_path, run.cfg), RunModels(run), []
    samples = [Sample("给妈妈的生日祝福", "祝妈妈生日快乐"), Sample("新年", "新年好，万事如意")]
    whole = _rewards(run, models).scalar("reward", 2)(samples).values
    np.testing.assert_allclose(_rewards(run, models).scalar("reward", 2, models.policy("sft"))(samples).values, whole, atol=1e-5)
    assert np.ptp(whole) > 0
    policy = RunModels.policy
    monkeypatch.setattr(RunModels, "policy", lambda self, stage: loaded.append(stage) or policy(self, stage))
    pipeline.run(again, ["rl"])
    assert loaded.count("sft") == 1, loaded
    jax.tree.map(np.testing.assert_array_equal, _saved(again), _saved(run))


def test_from_the_policy_it_starts_at_zero_with_numbers_of_its_own(run, tmp_path):
    state = _state(_again(run, tmp_path, _config("policy")))
    assert not np.any(state.critic.params["head"]["score"])
    for name, node in state.critic.params["model"]["layers"].items():
        assert not np.any(node["b"]) and not np.array_equal(node["a"], state.params["layers"][name]["a"])


def test_rlaif_plan_compiles_the_update_of_this_very_state(run):
    for cfg in (run.cfg, dataclasses.replace(run.cfg, lora=None)):
        programs = {p.name: p for p in build_programs(cfg, RunModels(run).config, run.place)}
        if cfg.lora is None:
            assert programs["rl: update"].arguments[4] is None
            continue
        given = programs["rl: update"].arguments
        planned, real = given[0].replace(frozen=given[4]), _state(run)
        assert jax.tree.structure(planned) == jax.tree.structure(real)
        for a, b in zip(jax.tree.leaves(planned), jax.tree.leaves(real), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype) and a.sharding.is_equivalent_to(b.sharding, b.ndim)


def test_a_reward_model_over_another_base_is_refused():
    cfg = _config()
    other = dataclasses.replace(cfg.reward, init="base")
    with pytest.raises(UserError, match=r"set reward\.init=sft, or rl\.critic\.init=policy"):
        dataclasses.replace(cfg, reward=other)
    with pytest.raises(UserError, match=r"that of reward\.folder"):
        dataclasses.replace(cfg, reward=dataclasses.replace(cfg.reward, folder="somewhere"))
    dataclasses.replace(_config("policy"), reward=other)


def test_the_plan_counts_an_adapter_for_the_critic(run):
    parts = {lora is None: next(r.parts for r in plan(dataclasses.replace(run.cfg, lora=lora), run.place) if r.name == "rl")
             for lora in (LORA, None)}  # fmt: skip
    adapter = sum(x.nbytes for x in jax.tree.leaves(_state(run).params))
    weights = parts[True]["weights"]
    assert 4 * adapter <= parts[False]["critic"] < 4.1 * adapter, "itself, its gradients and two moments"
    assert 4 * weights <= parts[True]["critic"] < 4.1 * weights
