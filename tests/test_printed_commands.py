"""Every `rlaif` command that README, docs and configs print is one that the parser takes, with a config that loads."""

import re
import shlex
from pathlib import Path

import pytest

from rlaif_jax.cli import _parser, main
from rlaif_jax.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", ROOT / "tpu_scripts" / "README.md",
         *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").glob("[!_]*.py"))]  # fmt: skip
PLACES = {
    "CONFIG": "greetings_demo", "OTHER": "greetings_demo", "DIR": "runs/x", "FOLDER": "folder", "FILE": "rows.jsonl", "NAME": "rl",
    "STAGE": "sft", "WORD": "kl", "MODEL": "some-model", "N": "2", "M": "2", "FIELD=VALUE": "seed=3",
    "own_data.py": "own_data",  # a user's copy of the bundled config
}  # fmt: skip
# In a line of code, at its start or after the command that runs it on other machines; or between backticks.
_LINE = re.compile(r"^(?: {4,}|#? ?\w+\.py: |.*-- |.*/)*(rlaif (?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)
_INLINE = re.compile(r"`(rlaif [^`\n]+)`")


def _commands():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = "\n".join(line for line in text.split("\n") if not line.startswith("|"))
        for found in dict.fromkeys([*_LINE.findall(code), *_INLINE.findall(text)]):
            command = re.sub(r"\\\n", " ", found).split("  #")[0].strip()
            named_alone = re.fullmatch(r"rlaif [a-z]+( [a-z-]+| CONFIG)?", command)
            if not (named_alone or "..." in command or "&&" in command or "||" in command):
                yield pytest.param(command, id=f"{page.name}: {' '.join(command.split())[:90]}")


COMMANDS = list(_commands())


def _arguments(command):
    command = re.sub(r"\[[^\]]*\]", "", command.replace("configs/CONFIG.py", "CONFIG"))
    return [PLACES.get(word, re.sub(r"\bMODEL\b", "some-model", word)) for word in shlex.split(command)][1:]


def test_there_are_commands_on_the_pages():
    assert len(COMMANDS) > 40 and len({p.id.split(":")[0] for p in COMMANDS}) > 12


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_command_parses_and_its_config_loads(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = _arguments(command)
    after = []
    if "--" in arguments:
        arguments, after = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    for words in filter(None, (arguments, after)):
        parsed = _parser().parse_args(words)
        if getattr(parsed, "config", "").startswith("my_"):  # tests/test_extending.py runs those files
            continue
        if hasattr(parsed, "overrides"):
            load_config(parsed.config, parsed.overrides)


DRY = [p.values[0] for p in COMMANDS if re.match(r"rlaif run greetings_demo .*--(set|dry)", p.values[0])]


@pytest.mark.parametrize("command", dict.fromkeys(DRY))
def test_a_printed_run_of_the_demo_has_a_plan(command, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "no-key-needed-here")
    arguments = [word for word in _arguments(command) if not word.startswith("mesh.")]
    (tmp_path / "my_reward.py").write_text("def short(samples):\n    return [0.0 for _ in samples]\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, *(["--dry-run"] if "--dry-run" not in arguments else [])]) == 0, capsys.readouterr().err
    assert "evaluate" in capsys.readouterr().out
