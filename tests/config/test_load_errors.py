"""A config file or an override that cannot be read is one line that names the file, the line or the field."""

import json
import re

import pytest

from rlaif_jax.cli import main
from rlaif_jax.config import HttpConfig, RunConfig, load_config, overridden
from rlaif_jax.errors import UserError

KEY = "sk-test-" + "4f9aK2" * 5  # of no service


def _refused(capsys, *arguments):
    assert main(["run", *map(str, arguments), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error, error
    return error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.json", b'{"seed": 1, "rl": {"group_size"', r"cut.json:1: not JSON"),
        ("latin.json", b'{"name": "caf\xe9"}', r"latin.json:1: not UTF-8 at byte 13; convert the file to UTF-8"),
        ("latin.yaml", b"name: x\nlanguage: \xff\n", r"latin.yaml:2: not UTF-8"),
        ("deep.json", b"[" * 20_000, "nested too deeply|not JSON"),
        ("deep.yaml", b"[" * 5_000, "nested too deeply"),
        ("digits.json", b'{"seed": ' + b"9" * 5000 + b"}", "digits.json: not JSON"),
        ("huge.json", b'{"rl": {"kl": {"coef": 1e400}}}', r"rl.kl.coef is inf; expected at most 1e\+06"),
        ("number.yaml", b"1: 2\n", "unknown field 1|unknown field '1'"),
        ("date.yaml", b"seed: 2024-99-99\n", "date.yaml"),
        ("self.yaml", b"seed: &a [*a]\n", "seed: expected int"),
        ("laugh.yaml", b"".join(b"%c: &%c [%s]\n" % (97 + i, 97 + i, b",".join([b"*%c" % (96 + i) if i else b"x"] * 9))
                                for i in range(9)) + b"seed: *i\n", "unknown field 'a'|seed: expected int"),
        ("nul.yaml", b"seed: \x00\n", "nul.yaml:1: not YAML"),
        ("syntax.py", b"def config(:\n", r"syntax.py:1: SyntaxError: invalid syntax"),
        ("imports.py", b"\nimport nothing_here\n", r"imports.py:2: ModuleNotFoundError: No module named 'nothing_here'"),
        ("latin.py", b"x = '\xe9'\n", "latin.py.*SyntaxError"),
        ("nul.py", b"x = 1\x00\n", "nul.py"),
        ("leaves.py", b"raise SystemExit(3)\n", "leaves.py:1: SystemExit: 3"),
        ("fails.py", b"def config():\n    return 1 / 0\n", "fails.py:2: ZeroDivisionError: division by zero"),
        ("none.py", b"def config():\n    pass\n", r"none.py: config\(\) returned NoneType; expected RunConfig"),
        ("field.py", b"from rlaif_jax.config import RlConfig\ndef config():\n    return RlConfig(group=4)\n",
         r"field.py:3: RlConfig has no field 'group'; `rlaif config list` shows all of them"),
        ("range.py", b"from rlaif_jax.config import ModelConfig\ndef config():\n    return (0,\n        ModelConfig(layers=0))\n",
         r"range.py:4: ModelConfig.layers is 0; expected at least 1"),
    ],
)  # fmt: skip
def test_a_broken_config_file_is_one_line(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    error = _refused(capsys, tmp_path / name)
    assert re.search(message, error), error


def test_a_folder_and_an_unknown_ending_are_no_config(tmp_path, capsys):
    assert "is a folder; expected a file" in _refused(capsys, tmp_path)
    (tmp_path / "c.toml").write_text("seed = 1\n", encoding="utf-8")
    assert "ends in .py, .json, .yaml or .yml" in _refused(capsys, tmp_path / "c.toml")
    assert "did you mean greetings_demo?" in _refused(capsys, "greeting_demo")
    assert "does not exist" in _refused(capsys, "a\0b")
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"seed": 3}')
    assert load_config(tmp_path / "bom.json").seed == 3


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("model.kv_heads=0", "model.kv_heads is 0; expected at least 1"),
        ("model.kv_heads=" + "(" * 3000, "model.kv_heads: expected int"),
        ("seed=" + "9" * 5000, "seed"),
        ("seed=0x" + "f" * 9000, "seed is a very large int"),
        ("rl.kl.coef=1" + "0" * 400, "rl.kl.coef"),
        ("rl.kl.coef=1e999", "rl.kl.coef is inf"),
        ("rl.kl.coef=-" * 2000, "rl.kl.coef"),
        ("seed={1: [2]}", "seed: expected int"),
        ("seed={[]: 1}", "seed: expected int"),
        ("." * 150 + "=1", "unknown field"),
        ("x" * 10_000 + "=1", "unknown field"),
        ("lora.targets={1: 2}", "lora"),
        ("data.sft.columns=[1]", "data.sft.columns: expected"),
    ],
    ids=range(13),
)
def test_an_override_of_any_shape_is_one_line(item, message):
    with pytest.raises(UserError, match=message) as caught:
        overridden(RunConfig(), [item])
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "item",
    [
        f"feedback.http.key_variable={KEY}", "feedback.http.key_variable=hf_" + "aB3dE6gH9" * 3, f"feedback.http.model={KEY}",
        "feedback.http.base_url=https://me:pass1@host/v1", f"feedback.http.base_url=https://host/v1?key={KEY}", f"name={KEY}",
        "logging.wandb_project=" + "3fA9" * 10, f"rl.train.steps={KEY}", f"data.sft.columns={{'prompt': '{KEY}'}}", f"{KEY}=1",
        f"data.sft.columns={{'{KEY}': 'x'}}", "feedback.http.key_variable=0123456789abcdef0123456789abcdef",
    ],
    ids=range(12),
)  # fmt: skip
def test_a_key_is_refused_and_neither_written_nor_repeated(tmp_path, capsys, item):
    out = tmp_path / "run"
    assert main(["run", "greetings_demo", "--out", str(out), "--set", item]) == 2
    printed = "".join(capsys.readouterr())
    secret = item.rpartition("=")[2] if KEY not in item else KEY
    assert secret.removeprefix("https://") not in printed and "pass1" not in printed and not out.exists(), printed


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "", "my_key_2", "KEY"])
def test_the_name_of_a_variable_is_no_key(name):
    assert HttpConfig(key_variable=name).key_variable == name


def test_ordinary_texts_are_no_keys():
    folder = "/home/me/models--Qwen--Qwen2.5-7B-Instruct/snapshots/0123456789abcdef0123456789abcdef01234567"
    items = [f"model.init_from={folder}", "feedback.http.model=Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "name=task-2024-of-a-long-name",
             "feedback.http.base_url=http://localhost:8000/v1", "data.root=/tmp/tmpAb3dE6gH9x/data"]  # fmt: skip
    assert load_config("greetings_demo", items).data.root.endswith("data")


def test_json_with_a_key_is_refused_too(tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps({"feedback": {"http": {"key_variable": KEY}}}), encoding="utf-8")
    assert KEY not in _refused(capsys, tmp_path / "c.json")
