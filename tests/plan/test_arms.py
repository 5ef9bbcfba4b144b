"""What `rlaif plan` compiles of each arm of RL, with a foreign reward model, and how often it counts one array."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from rlaif_jax.algorithms.kl import KlConfig
from rlaif_jax.config import ArmConfig, FeedbackConfig, JudgeConfig
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.plan import compiled
from rlaif_jax.plan.abstract import array, chip_bytes, in_rows, named, without
from rlaif_jax.plan.chips import CHIPS, Chip
from rlaif_jax.plan.estimate import plan, planned_model
from rlaif_jax.plan.programs import build_programs
from rlaif_jax.sharding import MeshConfig
from rlaif_jax.trainers.config import CriticConfig
from tests import tiny
from tests.plan.test_plan import NAMES

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def _judged(**changes):
    """The tiny run with a judge on the mesh and an arm of its own settings against it."""
    cfg = tiny.config()
    return dataclasses.replace(
        cfg, mesh=MESH, feedback=FeedbackConfig(batch_size=16), judge=JudgeConfig(game=None),
        arms={"rl": ArmConfig(reward_model=1.0), "rl_judge": ArmConfig(judge=1.0, rl=dataclasses.replace(cfg.rl, **changes))},
    )  # fmt: skip


def _programs(cfg, place):
    return {p.name: p for p in build_programs(cfg, planned_model(cfg), place)}


def test_one_array_is_counted_once_by_its_name_and_not_by_chance(eight_devices):
    weights = in_rows({"a": array((8, 4), jnp.float32), "b": array((8,), jnp.float32)}, eight_devices)
    size = chip_bytes(weights)
    assert chip_bytes((weights, weights)) == 2 * size, "the same Python objects, but nothing says that they are one array"
    base, copy = named("base", weights), named("copy", weights)
    assert chip_bytes((base, {"model": base})) == size and chip_bytes((base, copy)) == 2 * size
    assert chip_bytes(without((base, copy), ({"model": base},))) == size
    assert chip_bytes(without((weights, base), weights)) == 2 * size, "what has no name is an array of its own"


@pytest.mark.parametrize("lora", [None, LoraConfig({"layers/(q|v|up)": 4})], ids=["full", "lora"])
def test_a_refreshed_reference_is_an_array_of_its_own(eight_devices, lora):
    """It is of the size of what is trained; a reference that never moves is a model beside the state, or the frozen base."""
    cfg = dataclasses.replace(tiny.config(), mesh=MESH, lora=lora)
    kept = {}
    for name, kl in (("none", KlConfig(0.0)), ("still", KlConfig(0.1)), ("refreshed", KlConfig(0.1, ref_sync_steps=2))):
        one = dataclasses.replace(cfg, rl=dataclasses.replace(cfg.rl, kl=kl))
        programs = _programs(one, eight_devices)
        kept[name] = {n: chip_bytes((p.held, p.arguments)) for n, p in programs.items() if n in ("rl: rollout", "rl: update")}
        trained = chip_bytes(programs["rl: update"].arguments[0].params)
    for program, none in kept["none"].items():
        assert kept["still"][program] - none == pytest.approx(0 if lora else trained, abs=4096), program
        assert kept["refreshed"][program] - none == pytest.approx(trained, abs=4096), program


@pytest.mark.slow
def test_an_arm_with_its_own_batch_or_group_is_planned(eight_devices):
    cfg = _judged(group_size=2, critic=CriticConfig(init="policy"))
    programs, apart = _programs(cfg, eight_devices), [f"rl_judge: {name}" for name in ("rollout", "log-probs", "update")]
    assert list(programs) == [*NAMES, *apart, "rl_judge: verdicts"]
    chip = Chip(2**30, 1e12, 1e11, 1e10)
    for name in apart:
        row = compiled.measure(programs[name], eight_devices, chip)
        assert row.fits and row.flops > 0, name
    assert programs["rl_judge: log-probs"].arguments[0].critic is not None
    tokens = {arm: programs[f"{arm}: update"].arguments[1].tokens.shape[0] for arm in ("rl", "rl_judge")}
    assert tokens == {"rl": 32, "rl_judge": 16}
    assert programs["rl_judge: update"].remedies == (
        ("arms.rl_judge.rl.train.grad_accumulation=2",), ("arms.rl_judge.rl.train.grad_accumulation=4",)
    )  # fmt: skip


def test_arms_with_the_same_programs_are_planned_once(eight_devices):
    train = dataclasses.replace(tiny.config().rl.train, steps=99, log_every=3)
    assert list(_programs(_judged(train=train, kl=KlConfig(0.5)), eight_devices)) == [*NAMES, "rl_judge: verdicts"]
    assert list(_programs(_judged(rollout_chunks=2), eight_devices)) == [*NAMES, "rl_judge: rollout", "rl_judge: verdicts"]


def test_programs_of_several_arms_are_planned_beside_the_largest_of_their_rewards(eight_devices):
    own = ArmConfig(functions={"short": lambda samples: [0.0] * len(samples)})
    arms, kept = {"both": ArmConfig(reward_model=1.0, judge=0.5), "own": own}, {}
    for names in (("both",), ("own",), ("own", "both")):
        cfg = dataclasses.replace(_judged(), arms={name: arms[name] for name in names})
        programs = _programs(cfg, eight_devices)
        kept[names] = {n.partition(": ")[2]: chip_bytes((p.held, p.arguments)) for n, p in programs.items() if ":" in n}
        assert ("scores" in kept[names]) is ("verdicts" in kept[names]) is ("both" in names)
    parts = {row.name: row.parts for row in plan(cfg, eight_devices)}
    assert {"reward model", "feedback model"} <= set(parts["both"]) and not {"reward model", "feedback model"} & set(parts["own"])
    judge = chip_bytes(programs["both: verdicts"].arguments[0])
    reward = chip_bytes(programs["own: scores"].arguments[0])
    assert programs["own: update"].also == ("both: update",)
    for name in ("rollout", "log-probs", "update"):
        assert kept["both",][name] == kept["own", "both"][name] == kept["own",][name] + judge + reward, name


def test_a_run_without_a_reward_model_is_planned(eight_devices):
    cfg = dataclasses.replace(_judged(), reward=None, grader=None, arms={})
    assert list(_programs(cfg, eight_devices)) == [
        "sft", "rl_judge: rollout", "rl_judge: log-probs", "rl_judge: update", "rl_judge: verdicts"
    ]  # fmt: skip
    parts = {row.name: row.parts for row in plan(cfg, eight_devices)}
    assert "feedback model" in parts["rl_judge"] and parts["evaluate"]["graders"] == 0


def test_a_remedy_that_makes_both_arms_equal_is_found(monkeypatch):
    cfg = _judged(rollout_chunks=1)
    cfg = dataclasses.replace(cfg, mesh=MeshConfig(), rl=dataclasses.replace(cfg.rl, rollout_chunks=2))
    devices = jax.devices()[:1]
    row = compiled.Row("rl_judge: rollout", 0, 0, 0, 0, 0, True, 0.0, (), {}, 0.0, 0.0)
    monkeypatch.setattr(compiled, "measure", lambda program, place, chip: row)
    program = compiled._programs(cfg, devices)["rl_judge: rollout"][1]
    assert compiled._remedy(cfg, program, devices, CHIPS["v5e"]) == "--set arms.rl_judge.rl.rollout_chunks=2"


def test_a_foreign_reward_model_is_scored_with_and_not_trained(eight_devices, tmp_path):
    """Its shapes and its size, not the policy's."""
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"], "num_labels": 1, "vocab_size": 640,
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "id2label": {"0": "reward"},
    }))  # fmt: skip
    cfg = dataclasses.replace(tiny.config(), mesh=MESH)
    cfg = dataclasses.replace(cfg, reward=dataclasses.replace(cfg.reward, folder=str(tmp_path)))
    programs = _programs(cfg, eight_devices)
    assert list(programs) == [name for name in NAMES if name != "reward"]
    weights = programs["rl: scores"].arguments[0]
    assert weights["model"]["layers"]["q"].shape == (3, 48, 48) and weights["head"]["score"].shape == (48,)
    assert chip_bytes(weights) != chip_bytes(programs["rl: rollout"].arguments[0])
    (row,) = [row for row in plan(cfg, eight_devices) if row.name == "rl"]
    assert chip_bytes(weights["model"]) == row.parts["reward model"], "the dry run counts the same"
    held = {name: chip_bytes(programs[name].held) for name in ("rl: rollout", "rl: log-probs", "rl: update")}
    assert min(held.values()) >= chip_bytes(weights), "it is in memory all along"
    measured = compiled.measure(programs["rl: scores"], eight_devices, Chip(2**30, 1e12, 1e11, 1e10))
    assert measured.fits and measured.flops > 0
