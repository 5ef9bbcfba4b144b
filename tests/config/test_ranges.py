"""Every number of a config has a range, and a value outside it is refused under the field's full name."""

import dataclasses
import math
import typing

import pytest

from rlaif_jax.algorithms.advantages import AdvantageConfig
from rlaif_jax.config import (
    ArmConfig,
    CriticConfig,
    CurateConfig,
    DpoConfig,
    FeedbackConfig,
    FunctionConfig,
    JudgeConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RlConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from rlaif_jax.errors import UserError
from rlaif_jax.models.model_config import RopeScaling
from rlaif_jax.ranges import Range, hints_of, range_of

FULL = RunConfig(
    model=ModelConfig(rope_scaling=RopeScaling()), grader=RewardConfig(loss="binary"), feedback=FeedbackConfig(),
    curate=CurateConfig(), judge=JudgeConfig(), dpo=DpoConfig(), lora=LoraConfig(), rl=RlConfig(critic=CriticConfig(init="policy")),
    arms={"own": ArmConfig(functions={"f": FunctionConfig("own.py:f")}, rl=RlConfig())},
)  # fmt: skip
PROBES = (-1, 0, math.inf, -math.inf, math.nan, 1e22, 10**22, 10**400, -(10**22), -1e-300)

# Probes that make sense, by the end of a field's name. Everything else that a probe changes must be refused.
ZERO = """
    eval_every patience center_coef value_clip missing_eos_penalty overlong_buffer overlong_penalty clip kl_early_stop max_resamples
    coef target ref_sync_steps dual_clip entropy_coefficient repetition_weight length_weight constraint_weight veto_penalty
    requests_per_minute min_temperature price_prompt price_completion budget f.timeout curate.prompts examples popularity_weight
    margin games reflections gate_rows sft.limit sft_eval.limit pairs.limit pairs_eval.limit labelled.limit labelled_val.limit
    labelled_eval.limit prompts.limit eval_prompts.limit evaluation.limit
    best_of win_rates evaluation.debate top_k min_p eval_fraction grader_share reward_model judge weight
    pair_max_length weight_decay model.vocab_size corpus.sft corpus.pairs corpus.labelled rl_prompts eval_prompts sft_flaw_rate
    sft_visible visible transcripts verdict_pairs warmup final_ratio label_smoothing rollout_correction_low clip_low clip_high
    max_invalid_rewards max_invalid seed temperature gamma lam beta1 beta2 learning_rate epsilon norm_eps |o|gate|up|down)
"""
MINUS_ONE = "mesh.data mesh.fsdp mesh.tensor dcn_data dcn_fsdp f.weight entropy_coefficient"  # all remaining devices; or a sign
TINY = "f.weight entropy_coefficient"


def _numbers(kind, value, path=""):
    """(dotted name, type, range) of every number below a section."""
    for name, hint in hints_of(kind).items():
        here, at = getattr(value, name), f"{path}{name}"
        bare = typing.get_args(hint)[0] if range_of(hint) else hint
        if bare in (int, float):
            yield at, bare, range_of(hint)
        elif isinstance(here, dict):
            entry = typing.get_args(hint)[1]
            if range_of(entry):
                yield from ((f"{at}.{key}", int, range_of(entry)) for key in here)
            for key, child in here.items():
                if dataclasses.is_dataclass(child):
                    yield from _numbers(type(child), child, f"{at}.{key}.")
        elif dataclasses.is_dataclass(here):
            yield from _numbers(type(here), here, f"{at}.")


NUMBERS = list(_numbers(RunConfig, FULL))


def _with(path, value):
    plain = to_dict(FULL)
    at = plain
    names = path.split(".") if not path.startswith("lora.targets.") else ["lora", "targets", path.removeprefix("lora.targets.")]
    for name in names[:-1]:
        at = at[name]
    at[names[-1]] = value
    return plain


def _makes_sense(path, value):
    fields = {0: ZERO, -1: MINUS_ONE, -1e-300: TINY}.get(value, "")
    return any(path == field or path.endswith(field if "|" in field else f".{field}") for field in fields.split())


def test_every_number_has_a_range():
    assert len(NUMBERS) > 150
    assert not [path for path, _, limits in NUMBERS if limits is None]


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: str(p)[:6])
def test_a_number_that_makes_no_sense_is_refused_under_its_full_name(probe):
    for path, kind, _ in NUMBERS:
        if kind is int and not isinstance(probe, int):
            continue
        try:
            from_dict(RunConfig, _with(path, probe))
        except UserError as error:
            assert path in str(error) and len(str(error)) < 300, f"{path}={probe!r}: {error}"
        else:
            assert _makes_sense(path, probe), f"{path}={probe!r} is accepted"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(learning_rate=-1), r"OptimizerConfig\.learning_rate is -1; expected at least 0 and at most 10"),
        (lambda: OptimizerConfig(beta2=5), r"OptimizerConfig\.beta2 is 5; expected at least 0 and less than 1"),
        (lambda: OptimizerConfig(clip_norm=0), r"OptimizerConfig\.clip_norm is 0; expected more than 0"),
        (lambda: SamplingConfig(temperature=1e-30), r"temperature is 1e-30; expected at least 0.01 and at most 100, or 0"),
        (lambda: RlConfig(samples_every=0), r"samples_every is 0; expected at least 1"),
        (lambda: ModelConfig(kv_heads=0), r"kv_heads is 0; expected at least 1 and at most 16384"),
        (lambda: ModelConfig(layers=10**9), r"layers is 1000000000; expected at least 1 and at most 4096"),
        (lambda: ModelConfig(logit_chunk=-1), r"logit_chunk is -1"),
        (lambda: TrainConfig(steps=2**31), r"steps is 2147483648; expected at most 2.14748e\+09"),
        (lambda: TrainConfig(steps=1e3), r"steps is 1000.0; expected a whole number"),
        (lambda: TrainConfig(steps=True), r"steps is True; expected a whole number"),
        (lambda: TrainConfig(optimizer=3e-4), r"TrainConfig\.optimizer is 0.0003; expected OptimizerConfig"),
        (lambda: RunConfig(arms={"x": {"judge": 1.0}}), r"RunConfig\.arms\.x is \{'judge': 1.0\}; expected ArmConfig"),
        (lambda: RunConfig(sft=7), r"RunConfig\.sft is 7; expected SftConfig or none"),
        (lambda: AdvantageConfig(epsilon=math.nan), r"epsilon is nan; expected a number"),
        (lambda: LoraConfig(targets={"layers/q": -1}), r"LoraConfig\.targets\.layers/q is -1"),
    ],
)  # fmt: skip
def test_a_section_made_in_python_is_checked_too(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_range_says_what_it_expects():
    assert str(Range(0, 1, above=True, below=True)) == "more than 0 and less than 1"
    assert 0 in Range(0.5, 1, also=0) and 0.2 not in Range(0.5, 1, also=0) and math.nan not in Range(0, 1)
