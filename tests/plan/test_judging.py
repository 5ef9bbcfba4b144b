"""A judge on the mesh in `rlaif plan` and in the dry run: what it holds, and the program of its verdicts."""

import dataclasses

import jax
import numpy as np
import pytest

from rlaif_jax.config import FeedbackConfig, JudgeConfig
from rlaif_jax.config.overrides import overridden
from rlaif_jax.configs._targets import BESIDE, greetings_7b
from rlaif_jax.errors import UserError
from rlaif_jax.feedback import local_llm
from rlaif_jax.feedback.llm import LLMRequest, Message
from rlaif_jax.feedback.local_llm import LocalLLM
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import PRESETS, parameter_count
from rlaif_jax.models.quant import keep_layers_in_8_bits
from rlaif_jax.plan import compiled as aot
from rlaif_jax.plan import estimate
from rlaif_jax.plan.abstract import chip_bytes
from rlaif_jax.plan.chips import Chip
from rlaif_jax.plan.hlo import collectives, unordered
from rlaif_jax.plan.judging import judge_weights
from rlaif_jax.plan.programs import build_programs
from rlaif_jax.sharding import MeshConfig, Placement, sharded_init
from tests import tiny
from tests.feedback.test_local_llm import parts  # noqa: F401 (a fixture)
from tests.plan.test_plan import NAMES

CHIP = Chip(2**30, 1e12, 1e11, 1e10)
KINDS = [("soft", "float"), ("soft", "int8"), ("binary", "float"), ("k_vote", "int8")]


def _config(mode: str = "soft", weights: str = "float"):
    """The tiny run with a judge of the policy's shapes on the mesh."""
    return dataclasses.replace(
        tiny.config(), mesh=MeshConfig(data=2, fsdp=2, tensor=2), feedback=FeedbackConfig(weights=weights, batch_size=16),
        judge=JudgeConfig(mode=mode, game=None),
    )  # fmt: skip


def _programs(cfg, place):
    return {p.name: p for p in build_programs(cfg, estimate.planned_model(cfg), place)}


@pytest.mark.parametrize(("mode", "weights"), KINDS)
def test_verdicts_compile_and_leave_no_collective_to_the_order_alone(eight_devices, monkeypatch, mode, weights):
    cfg, texts = _config(mode, weights), []
    programs = _programs(cfg, eight_devices)
    assert list(programs) == [*NAMES, "rl_judge: verdicts"]
    monkeypatch.setattr(aot, "collectives", lambda text, *rest: texts.append(text) or collectives(text, *rest))
    row = aot.measure(programs["rl_judge: verdicts"], eight_devices, CHIP)
    assert row.fits and row.flops > 0 and row.step_seconds > 0
    assert any("tensor" in c.axes for c in row.collectives) and any("fsdp" in c.axes for c in row.collectives)
    assert unordered(texts[0]) == []


@pytest.mark.parametrize(("mode", "weights"), KINDS)
def test_the_abstract_arguments_are_those_of_a_call(parts, eight_devices, monkeypatch, mode, weights):  # noqa: F811
    """Same shapes, dtypes and places, the vocabulary and the batch apart."""
    _, model, tokenizer = parts
    cfg = _config(mode, weights)
    program = _programs(cfg, eight_devices)["rl_judge: verdicts"]
    calls = []

    def watched(make):
        def made(*args):
            run = make(*args)
            return lambda *arguments, **more: calls.append(arguments) or run(*arguments, **more)

        return made

    for name in ("make_choose", "make_sample"):
        monkeypatch.setattr(local_llm, name, watched(getattr(local_llm, name)))
    axes = transformer.logical_axes(model)
    params = sharded_init(lambda: transformer.init(model, jax.random.key(0)), axes, eight_devices)
    if weights == "int8":
        params = keep_layers_in_8_bits(params, axes, eight_devices)
    rows = program.arguments[1].shape[0]
    llm = LocalLLM(params, model, tokenizer, eight_devices, name="judge", batch_size=rows)
    request = [LLMRequest((Message("user", "评判这一条祝福"),), max_tokens=4)]
    if mode == "soft":
        llm.choice_logprobs(request, ("Good", "Bad"))
    else:
        llm.complete(request)
    (found,) = calls
    assert jax.tree.structure(found) == jax.tree.structure(program.arguments)
    for real, planned in zip(jax.tree.leaves(found), jax.tree.leaves(program.arguments), strict=True):
        assert (real.ndim, real.dtype) == (planned.ndim, planned.dtype)
        if isinstance(real, jax.Array) and real.committed:
            assert real.sharding.is_equivalent_to(planned.sharding, real.ndim)
    assert [x.shape[0] for x in found[1:3]] == [rows, rows]


@pytest.mark.parametrize("weights", ["float", "int8"])
def test_what_the_stage_holds_has_the_judge_or_the_reward_model_whichever_is_larger(weights):
    cfg = overridden(greetings_7b("v5p-128", feedback=BESIDE), [f"feedback.weights={weights}"])
    place = Placement(estimate.planned_mesh(cfg.mesh))
    programs, without = _programs(cfg, place), _programs(greetings_7b("v5p-128"), place)
    model = dataclasses.replace(PRESETS["qwen2.5-72b"], param_dtype="bfloat16")
    judge = chip_bytes(judge_weights(cfg, estimate.planned_model(cfg), place))
    assert judge == pytest.approx(parameter_count(model) * {"float": 2, "int8": 1.034}[weights] / 64, rel=0.015)
    (held,) = [row.parts for row in estimate.plan(cfg, place) if row.name == "rl_judge"]
    assert held["feedback model"] == pytest.approx(judge, rel=0.015), "the dry run counts the same, but for scales"
    reward = chip_bytes(programs["rl: scores"].arguments[0])
    for name in ("rl: rollout", "rl: log-probs", "rl: update"):
        assert chip_bytes(programs[name].held) - chip_bytes(without[name].held) == judge - reward, name
    assert chip_bytes(programs["rl: scores"].held) == chip_bytes(without["rl: scores"].held), "the judge is not there"
    assert np.prod(programs["rl_judge: verdicts"].arguments[1].shape) == 32 * 2048
    assert ("feedback.weights=int8",) in programs["rl_judge: verdicts"].remedies or weights == "int8"


def test_shapes_of_a_folder_that_is_not_here(tmp_path):
    cfg = greetings_7b("v5p-128", feedback=dataclasses.replace(BESIDE, preset=""))
    with pytest.raises(UserError, match="Qwen2.5-72B-Instruct"):
        estimate.plan(cfg, Placement(estimate.planned_mesh(cfg.mesh)))
    with pytest.raises(UserError, match="unknown model preset 'qwen'"):
        FeedbackConfig(preset="qwen")
