"""Damaged configs, overrides, rules and prompt files: a UserError or a value, soon, and nothing that was not checked."""

import json
import math

import pytest
import yaml

from rlaif_jax.config import RunConfig, load_config, overridden, to_dict
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.prompts import ROLES, Prompts
from tests.fuzz.mutate import json_mutations, mutations, outcomes

QUICK, SLOW = 250, 10_000
COUNTS = [pytest.param(QUICK, id="quick"), pytest.param(SLOW, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
DEMO = to_dict(load_config("greetings_demo"))
PYTHON = b"""from rlaif_jax.config import OptimizerConfig, RunConfig, SftConfig, TrainConfig


def config():
    train = TrainConfig(steps=10, batch_size=4, optimizer=OptimizerConfig(1e-3))
    return RunConfig(name="mine", seed=3, sft=SftConfig(train, max_length=64))
"""
ITEMS = [
    "sft.train.steps=100", "rl.kl.coef=0.05", "model.kv_heads=2", 'data.sft.columns={"prompt": "q"}', "arms.own.judge=0.5",
    "rl.critic={'lam': 0.9}", "lora={}", "judge=none", "model.init_from=/models/some", "lora.targets={'layers/q': 8}",
    "feedback.http.base_url=http://localhost:8000/v1", "arms.own.functions.f=mine.py:f", "rl.group=8", "rl_rules.length_weight=1",
]  # fmt: skip


def _all_finite(value):
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)


def _read_config(path):
    def read(case):
        path.write_bytes(case if isinstance(case, bytes) else json.dumps(case).encode())
        cfg = load_config(path)
        assert isinstance(cfg, RunConfig) and _all_finite(to_dict(cfg))
        return cfg

    return read


def _check(read, cases):
    accepted, refused = outcomes(read, cases)
    assert refused and accepted
    return accepted


@pytest.mark.parametrize("count", COUNTS)
def test_json(tmp_path, count):
    read = _read_config(tmp_path / "c.json")
    _check(read, mutations(json.dumps(DEMO).encode(), count // 2, 1))
    _check(read, json_mutations(DEMO, count // 2, 2))


@pytest.mark.parametrize("count", COUNTS)
def test_yaml(tmp_path, count):
    seed = yaml.safe_dump({"seed": 3, "sft": DEMO["sft"], "name": "问候", "judge": None}, allow_unicode=True).encode()
    _check(_read_config(tmp_path / "c.yaml"), mutations(seed, count, 3))


@pytest.mark.parametrize("count", COUNTS)
def test_python(tmp_path, count):
    _check(_read_config(tmp_path / "c.py"), mutations(PYTHON, count, 4))


@pytest.mark.parametrize("count", COUNTS)
def test_overrides(count):
    base = RunConfig()
    per_item = -(-count // len(ITEMS))
    for number, item in enumerate(ITEMS):
        cases = (case.decode("utf-8", "surrogateescape") for case in mutations(item.encode(), per_item, number))
        accepted, _ = outcomes(lambda text: overridden(base, [text]), cases)
        assert all(_all_finite(to_dict(cfg)) for _, cfg in accepted)


@pytest.mark.parametrize("count", COUNTS)
def test_rules(tmp_path, count):
    path = tmp_path / "rules.txt"

    def read(case):
        path.write_bytes(case)
        rules = read_rules(path)
        assert rules and all(rule.strip() and "\n" not in rule for rule in rules)
        return rules

    _check(read, mutations("# principles\n用词得体\nNo advertisement.\n\\# one\n".encode(), count, 5))


@pytest.mark.parametrize("count", COUNTS)
def test_prompt_files(tmp_path, count):
    for role in ROLES:
        (tmp_path / f"{role}.j2").write_text("{{ query | fence }}", encoding="utf-8")
    seed = (
        "{% macro line(i, r) %}{{ i }}. {{ r | trim }}{% endmacro %}判断。\n{% for rule in principles %}\n"
        "{{ line(loop.index, rule) }}\n{% endfor %}\n%% assistant\n"
        "{% if reason %}{{ reason ~ '!' }}{% endif %}\n%% user\n{{ query | fence }} {{ limit * 2 + 1 }}"
    )
    fields = {"query": "写一条祝福", "principles": ["得体", "b"], "reason": "r", "limit": 3}

    def read(case):
        (tmp_path / "detector.j2").write_bytes(case)
        chat = Prompts(str(tmp_path)).messages("detector", **fields)
        assert chat and sum(len(m.content) for m in chat) <= 1_100_000
        return chat

    _check(read, mutations(seed.encode(), count if count > QUICK else 100, 6))


def test_a_key_in_a_damaged_config_is_never_repeated(tmp_path):
    key = "sk-live-" + "a1B2c3" * 5
    values = {"feedback": {"http": {"key_variable": key}}, "judge": None}
    path = tmp_path / "c.json"
    for case in mutations(json.dumps(values).encode(), 100, 7):
        if key.encode() in case:
            path.write_bytes(case)
            with pytest.raises(UserError) as caught:
                load_config(path)
            assert key not in str(caught.value)
