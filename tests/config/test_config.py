"""Config files, overrides and what is refused; the layers of the package."""

import json
from pathlib import Path

import pytest

from rlaif_jax.cli import main
from rlaif_jax.config import ArmConfig, FunctionConfig, RuleConfig, RunConfig, find_config, load_config
from rlaif_jax.config.describe import all_fields
from rlaif_jax.config.overrides import overridden
from rlaif_jax.config.values import from_dict, to_dict
from rlaif_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def test_overrides_are_typed():
    cfg = overridden(RunConfig(), ["sft.train.optimizer.learning_rate=3e-4", "sft.packing=false"])
    assert cfg.sft.train.optimizer.learning_rate == 3e-4 and cfg.sft.packing is False
    assert overridden(RunConfig(), ["data.root=123"]).data.root == "123"
    assert overridden(RunConfig(), ['data.sft.columns={"prompt": "q"}']).data.sft.columns == {"prompt": "q"}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("sft.train.stepz=3", "did you mean 'steps'"),
        ("sft.train.steps=3.5", "expected int, found 3.5"),
        ("sft.train.steps=many", "expected int"),
        ("sft.train.steps=0", "at least 1"),
        ("name.x=3", "has no fields"),
        ("seed", "expected field=value"),
        ("rl.kl.estimator=k1", "gradient of zero"),
    ],
)
def test_mistakes_are_named(item, message):
    with pytest.raises(UserError, match=message):
        overridden(RunConfig(), [item])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[!_]*.py")), ids=lambda p: p.name)
def test_every_config_loads_and_survives_json(path):
    cfg = load_config(path)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(cfg)))) == cfg
    assert f"configs/{path.name}" in path.read_text(encoding="utf-8"), "the docstring holds the command"


def test_a_bare_name_finds_the_bundled_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("greetings_lora").mkdir()  # a folder is no config
    found = find_config("greetings_lora")  # of the installed package, which may be another checkout
    assert found.is_file() and found.parts[-2:] == ("configs", "greetings_lora.py")
    assert load_config("greetings_demo").name == load_config(ROOT / "configs" / "greetings_demo.py").name
    Path("greetings_demo").write_text("a file of the user comes first", encoding="utf-8")
    assert find_config("greetings_demo") == Path("greetings_demo")


@pytest.mark.parametrize("name", ["greeting_demo", "_targets", "greetings_demo.py", "configs/greetings_demo"])
def test_an_unknown_name_lists_the_bundled_configs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{name} does not exist; .*greetings_demo, greetings_demo_ppo, greetings_lora"):
        find_config(name)


def test_dry_run_prints_the_plan_and_runs_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    config = str(ROOT / "configs" / "greetings_demo.py")
    assert main(["run", config, "--out", str(out), "--dry-run", "--set", "mesh.data=8"]) == 0
    text = capsys.readouterr().out
    for word in ("tokenizer", "sft", "reward", "rl", "evaluate", "data 8", "MiB"):
        assert word in text
    assert not out.exists()


def test_a_users_mistake_is_one_line(capsys):
    assert main(["run", "nowhere.py"]) == 2
    assert "nowhere.py does not exist" in capsys.readouterr().err
    assert main(["generate", "nowhere", "--prompt", "x"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_overrides_that_need_one_another_come_in_any_order():
    one, two = "sft=none", "model.init_from=somewhere"
    for items in ((one, two), (two, one)):
        cfg = overridden(RunConfig(), items)
        assert cfg.sft is None and cfg.model.init_from == "somewhere"
    assert overridden(RunConfig(), ["seed=1", "seed=2"]).seed == 2
    both = overridden(RunConfig(), ["model.kv_cache=int8", "model.kv_cache=float", "rl.policy.rollout_correction=token_truncate"])
    assert both.model.kv_cache == "float", "the last value of a field counts, also when the first had to wait"
    with pytest.raises(UserError, match="no policy to start from"):
        overridden(RunConfig(), [one, "seed=3"])
    with pytest.raises(UserError, match=r"seed: expected int, found 'x'"):
        overridden(RunConfig(), ["seed=x", two])


def test_every_field_says_what_it_means():
    missing = [f.name for f in all_fields() if not f.doc]
    assert not missing, f"no entry under Attributes: of the section's class: {', '.join(missing)}"


def test_fields_under_names_of_earlier_versions_are_accepted_with_a_note():
    said = []
    cfg = overridden(RunConfig(), ["rl.group=8", "rl.train.accumulation=2", "rl.policy.surrogate=gradient"], said.append)
    assert cfg.rl.group_size == 8 and cfg.rl.train.grad_accumulation == 2 and cfg.rl.policy.loss == "reinforce"
    assert said[0] == "note: the field group of RlConfig is called group_size now" and len(said) == 3
    old = {"rl": {"kl": {"coefficient": 0.5}, "max_prompt": 20}, "rl_rules": {"constraint_weight": 1.0, "model_weight": 2.0}}
    cfg = from_dict(RunConfig, old, say=said.append)
    assert cfg.rl.kl.coef == 0.5 and cfg.rl.max_prompt_tokens == 20
    assert cfg.arms["rl"].reward_model == 2.0 and cfg.arms["rl"].rules.constraint_weight == 1.0
    assert overridden(RunConfig(), ["rl_rules.length_weight=0.5"]).arms["rl"].rules.length_weight == 0.5


def test_sections_that_need_one_another_go_together_in_any_order():
    items = ["reward.init=sft", "curate=none", "judge=none", "feedback=none", "evaluation.debate=0"]
    for order in (items, items[::-1]):
        cfg = load_config("greetings_demo", order)
        assert cfg.judge is None and cfg.feedback is None and list(cfg.arms) == ["rl"]
    with pytest.raises(UserError, match=r"dpo is none in this config; add the section with --set dpo=\{\}"):
        overridden(RunConfig(), ["dpo.beta=0.5"])
    assert overridden(RunConfig(), ["dpo={}", "dpo.beta=0.5"]).dpo.beta == 0.5
    for order in (["dpo={}", "dpo.train.steps=5"], ["dpo.train.steps=5", "dpo={}"]):
        assert overridden(RunConfig(), order).dpo.train.steps == 5, "a section is set before its fields"
    own = overridden(RunConfig(), ["arms.rl.rl.group_size=8"])
    assert own.rl.group_size == 4 and own.rl_of("rl").group_size == 8, "an arm gets settings of its own, else those of rl"
    more = overridden(RunConfig(), ["arms.plain.reward_model=1.0", "arms.plain.rules.repetition_weight=0.1"])
    assert list(more.arms) == ["rl", "plain"] and more.arms["plain"].rules.repetition_weight == 0.1


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["arms.m.functions.f=my.py:f", "arms.m.functions.f.weight=2"], ArmConfig(functions={"f": FunctionConfig("my.py:f", 2.0)})),
        (["arms.m.functions.f.weight=2", "arms.m.functions.f=my.py:f"], ArmConfig(functions={"f": FunctionConfig("my.py:f", 2.0)})),
        (["arms={}", "arms.m.reward_model=3"], ArmConfig(reward_model=3.0)),
        (["arms.m={'reward_model': 1}", "arms.m.rules.repetition_weight=0.5"],
         ArmConfig(reward_model=1.0, rules=RuleConfig(repetition_weight=0.5))),
    ],
)  # fmt: skip
def test_an_arm_is_set_as_a_section_and_by_field(items, expected):
    assert overridden(RunConfig(), items).arms["m"] == expected


@pytest.mark.parametrize("item", ["seed.x=1", "dpo.beta=1", "rl.train=5", "arms=3", "arms.m=x", "arms.m.functions.f.weight=2"])
def test_an_impossible_override_is_one_line(item):
    with pytest.raises(UserError, match=item.split("=")[0].split(".")[0]):
        overridden(RunConfig(), [item])


def test_settings_of_rl_are_those_of_each_arm_unless_it_has_its_own_value():
    said = []
    cfg = load_config("greetings_demo", ["rl.train.steps=7", "rl.kl.coef=0.3", "rl.group=8"], said.append)
    assert cfg.rl.kl.coef == 0.3 and cfg.rl_of("rl_judge").kl.coef == 0.05
    assert cfg.rl_of("rl_judge").train.steps == cfg.rl_of("rl").train.steps == 7 and cfg.rl_of("rl_judge").group_size == 8
    assert [s for s in said if "keeps" in s] == [
        "note: arms.rl_judge.rl.kl.coef keeps its own value, 0.05; to change it: --set arms.rl_judge.rl.kl.coef=0.3"
    ]
    both = load_config("greetings_demo", ["arms.rl_judge.rl.train.steps=3", "rl.train.steps=7"])
    assert both.rl_of("rl").train.steps == 7 and both.rl_of("rl_judge").train.steps == 3
    assert load_config("greetings_demo", ["rl.critic={}", "rl.critic.lam=0.9"]).rl_of("rl_judge").critic.lam == 0.9


def test_a_resolved_config_runs_as_yaml_and_as_json(tmp_path, capsys):
    assert main(["config", "show", "greetings_demo", "--set", "seed=7"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "demo.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "demo.json").write_text(json.dumps(to_dict(load_config("greetings_demo", ["seed=7"]))), encoding="utf-8")
    expected = load_config("greetings_demo", ["seed=7"])
    assert load_config(tmp_path / "demo.yaml") == load_config(tmp_path / "demo.json") == expected
    assert main(["config", "diff", "greetings_demo", str(tmp_path / "demo.yaml")]) == 0
    assert "equal" not in (shown := capsys.readouterr().out) and "seed" in shown and "7" in shown
    (tmp_path / "broken.yaml").write_text("rl: [1,\nseed: 3", encoding="utf-8")
    (tmp_path / "broken.json").write_text('{"seed": 3,\n', encoding="utf-8")
    for name in ("broken.yaml", "broken.json"):
        assert main(["run", str(tmp_path / name), "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{name}:" in error, error


def test_the_list_of_fields_shows_type_default_and_meaning(capsys):
    assert main(["config", "list", "kl.coef"]) == 0
    assert "rl.kl.coef" in (text := capsys.readouterr().out) and "0.001" in text and "float, at least 0" in text


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "base", "best_of", "config.json", "."])
def test_an_arms_name_is_a_plain_folder_that_nothing_else_uses(name):
    with pytest.raises(UserError, match="cannot be the name of an arm"):
        RunConfig(arms={name: ArmConfig(reward_model=1.0)})


def test_two_functions_of_one_name_are_refused():
    same = {"a": ArmConfig(functions={"f": "x.py:f"}), "b": ArmConfig(functions={"f": FunctionConfig("x.py:f", weight=2.0)})}
    assert len(RunConfig(arms=same).arms) == 2
    with pytest.raises(UserError, match=r"arms\.b\.functions\.f and arms\.a\.functions\.f are two functions with one name"):
        RunConfig(arms=same | {"b": ArmConfig(functions={"f": "y.py:f"})})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "seed: 1\nrl:\n  group_size: 8\n  group_size: 4\n", r"a\.yaml:4: the field 'group_size' is there twice"),
        ("a.json", '{"seed": 1, "seed": 2}', "the field 'seed' is there twice"),
        ("a.yaml", "", r"a\.yaml: the file is empty"),
        ("a.yaml", "- 1\n", r"a\.yaml: expected fields"),
        ("a.json", "", r"a\.json: the file is empty"),
        ("a.txt", "seed: 1\n", r"a\.txt: expected a file that ends in"),
    ],
)
def test_a_config_file_that_is_none_says_why(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / name)
