"""PPO, DPO and best-of-n through the pipeline; a PPO stage that was interrupted ends with the same bytes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.algorithms.kl import KlConfig
from rlaif_jax.errors import UserError
from rlaif_jax.rewards.base import RewardResult
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.samples import SampleTable
from rlaif_jax.stages import pipeline
from rlaif_jax.stages.evaluate import best_of_groups
from rlaif_jax.trainers import rl as rl_trainer
from rlaif_jax.trainers.config import CriticConfig, DpoConfig, ShapingConfig
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.optimizer import OptimizerConfig
from tests import tiny
from tests.trainers.states import restore_all

QUIET = Console(quiet=True)


def _config():
    cfg = tiny.config(steps=6, checkpoint_every=2)
    rl = dataclasses.replace(
        cfg.rl, critic=CriticConfig(OptimizerConfig(1e-3)),
        kl=KlConfig(0.05, "reward", "k1", target=0.1, ref_sync_steps=3), group_size=2,
        shaping=ShapingConfig(normalise=True, clip=5.0), num_epochs=2,
    )  # fmt: skip
    dpo = DpoConfig(cfg.sft.train)
    return dataclasses.replace(cfg, grader=None, rl=rl, dpo=dpo, evaluation=dataclasses.replace(cfg.evaluation, best_of=3))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of all stages on one device."""
    from rlaif_jax.sharding import MeshConfig, Placement, make_mesh

    place = Placement(make_mesh(MeshConfig(), jax.devices()[:1]))
    experiment = Run(_config(), tmp_path_factory.mktemp("ppo") / "run", place, QUIET)
    pipeline.run(experiment)
    return experiment


def _state(experiment: Run) -> list[bytes]:
    """All of the last checkpoint: actor, critic, both optimisers, reference, coefficient, statistics."""
    step, tree = restore_all(experiment.folder("rl") / "checkpoints")
    assert step == 6
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_the_report_holds_every_system(run):
    rows = json.loads((run.folder("report") / "report.json").read_text(encoding="utf-8"))["rows"]
    assert list(rows) == ["base", "sft", "best_of", "dpo", "rl"]
    assert rows["best_of"]["reward"]["value"] >= rows["sft"]["reward"]["value"]


@pytest.mark.slow
def test_the_critic_and_its_diagnostics_are_logged(run):
    row = next(r for r in read_metrics(run.folder("rl") / "metrics.jsonl") if "loss" in r)
    assert {"critic/loss", "explained_variance", "kl_sequence", "kl_coefficient", "rollout_mismatch", "clip_ratio/high",
            "reward_p90", "seconds/update", "tokens_per_second"} <= set(row)  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_ppo_stage_ends_with_the_same_bytes(run, tmp_path, monkeypatch):
    again = dataclasses.replace(run, out=tmp_path / "run")
    again.out.mkdir()
    for stage in ("tokenizer", "sft", "reward"):
        (again.out / stage).symlink_to(run.folder(stage))
    with monkeypatch.context() as patched:
        _stop_once(patched, step=5)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(again, ["rl"])
    assert not again.is_done("rl")
    pipeline.run(again, ["rl"])
    assert _state(again) == _state(run)


def _stop_once(monkeypatch, step: int):
    """The RL stage fails once, at this step."""
    show, failed = SampleTable.show, []

    def stop(self, number, *rest):
        if number == step and not failed:
            failed.append(step)
            raise KeyboardInterrupt
        show(self, number, *rest)

    monkeypatch.setattr(SampleTable, "show", stop)


def _where_it_waits(monkeypatch) -> set[str]:
    """The memory kinds in which optimisers' states and the reference are found between updates."""
    real, kinds = rl_trainer.reference_of, set()

    def look(trainable, state, kept):
        reference = real(trainable, state, kept)
        waiting = state.opt_state, state.critic.opt_state, reference
        kinds.update(leaf.sharding.memory_kind for leaf in jax.tree.leaves(waiting))
        return reference

    monkeypatch.setattr(rl_trainer, "reference_of", look)
    return kinds


@pytest.mark.slow
def test_what_waits_on_the_host_changes_nothing(run, tmp_path, monkeypatch):
    """Optimisers' states and reference on the host, with a stop in between, against a run without either."""
    fixed, states = dataclasses.replace(run.cfg.rl, kl=KlConfig(0.05), num_epochs=1), []
    for offload, kind in ((False, jax.devices()[0].default_memory().kind), (True, "pinned_host")):
        rl = dataclasses.replace(fixed, offload_optimizer=offload, offload_reference=offload)
        x = dataclasses.replace(run, out=tmp_path / f"{offload}", cfg=dataclasses.replace(run.cfg, rl=rl))
        x.out.mkdir()
        for stage in ("tokenizer", "sft", "reward"):
            (x.out / stage).symlink_to(run.folder(stage))
        with monkeypatch.context() as patched:
            kinds = _where_it_waits(patched)
            if offload:
                _stop_once(patched, step=5)
                with pytest.raises(KeyboardInterrupt):
                    pipeline.run(x, ["rl"])
            pipeline.run(x, ["rl"])
        assert kinds == {kind}
        states.append(_state(x))
    assert states[0] == states[1]


def test_best_of_takes_the_highest_verdict_there_is():
    values = np.array([1.0, 3.0, 2.0, 9.0, 5.0, 4.0, 0.0, 0.0, 0.0], np.float32)
    valid = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0], bool)
    assert best_of_groups(RewardResult(values, valid), 3).tolist() == [1, 4, 6]


def test_dpo_settings_that_cannot_work_are_refused():
    for field, value in (("loss", "magic"), ("beta", 0.0)):
        with pytest.raises(UserError, match=rf"\b{field}\b"):
            DpoConfig(**{field: value})
