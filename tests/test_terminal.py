"""What reaches the terminal: no control character of a text, no markup, no key; and messages of libraries are not there."""

import io
import logging
import re
import sys

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

import rlaif_jax
from rlaif_jax.cli import main
from rlaif_jax.errors import UserError, holds_secret, masked, printable, shown
from rlaif_jax.rewards.base import RewardResult, Sample
from rlaif_jax.runs.samples import SampleTable
from rlaif_jax.terminal import PlainConsole, plain_log

TITLE, CLIPBOARD, LINK = "\x1b]0;owned\x07", "\x1b]52;c;b3duZWQ=\x1b\\", "\x1b]8;;http://x\x1b\\"
HOSTILE = f"a{TITLE}b{CLIPBOARD}c{LINK}d\x1b[2J\x1b[31me\x9b31mf\x9d0;owned\x9cg\x1bP1$r\x1b\\h\x00\x08\x7f\x85i\u202ej"


def test_a_printable_text_keeps_its_words_alone():
    assert printable(HOSTILE) == "abcdefghij"
    assert printable("两行\n列\t宽\r\n") == "两行\n列\t宽\n"
    assert printable("\x1b]0;never closed") == "]0;never closed"
    assert printable("half \ud83d") == "half \ufffd" and printable("😀") == "😀"
    assert printable("\x1b" * 200_000 + "]" * 200_000) == "]" * 200_000


def test_a_console_prints_data_as_data():
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=True, width=300, color_system=None)
    console.print(HOSTILE, "runs/exp[v2]/report.html [/b] [bold]x")
    table = Table(HOSTILE, title=f"[red]{HOSTILE}")
    table.add_row(f"{HOSTILE} [/nothing]")
    console.print(table)
    text = out.getvalue()
    assert "runs/exp[v2]/report.html [/b] [bold]x".replace(" ", "") in text.replace("\n", "").replace(" ", "")
    assert text.startswith("abcdefghij runs") and "[red]a" in text and "[/nothing]" in text.replace("\n", "").replace(" ", "")
    assert not set(text) & set("\x1b\x07\x9b\x9d\x00\x08\x7f\x85\u202e")


def test_the_table_of_samples_strips_what_a_policy_writes(tmp_path):
    class Run:
        console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=150)

        def folder(self, stage):
            return tmp_path

    table = SampleTable(Run(), "rl")
    samples = [Sample(HOSTILE, f"[/b]{HOSTILE}", True)]
    table.show(1, samples, RewardResult(np.ones(1, np.float32), np.ones(1, bool)))
    text = Run.console.file.getvalue()
    assert "abcdefghij" in text and "[/b]abcdefghij" in text and "\x1b" not in text and "owned" not in text


def test_an_error_neither_moves_the_cursor_nor_repeats_a_key(capsys):
    assert main(["run", f"no{TITLE}where.py"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error and "\x07" not in error and error.startswith("rlaif: error: config nowhere.py does not exist")
    assert masked("401 for sk-proj-Ab3dEf6hIj9lMnOp: no") == "401 for (hidden): no"
    assert masked("https://me:word@host/v1") == "https://(hidden)@host/v1"
    assert len(shown("x" * 1000)) <= 100 and len(shown(["x" * 1000] * 1000)) <= 100 and shown(10**9000) == "a very large int"


@pytest.mark.parametrize(
    "text",
    ["sk-Ab3dEf6hIj9lMnOp", "hf_" + "Ab3" * 8, "ghp_" + "a1B2" * 9, "AKIA" + "A1" * 8, "x=eyJhbGciOiJIUzI1.eyJzdWIiOiIxMj.c2ln",
     "Bearer " + "a" * 20],
)  # fmt: skip
def test_keys_of_known_shapes_are_recognised(text):
    assert holds_secret(text) and text not in masked(f"error: {text}.")


def test_warnings_are_lines_of_the_program_and_come_once(capsys):
    logging.basicConfig(stream=sys.stderr)  # as some library does
    log = logging.getLogger("rlaif_jax.data.tokenizer")
    with plain_log():
        for _ in range(3):
            log.warning("%d of %d examples exceed %d tokens", 1, 2, 3)
    assert capsys.readouterr().err == "rlaif: note: 1 of 2 examples exceed 3 tokens\n"
    assert logging.getLogger("rlaif_jax").propagate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; "),
        (["reprot", "x"], "did you mean 'report'"),
        (["config", "lst"], "did you mean 'list'"),
        (["evaluat", "greetings_demo"], "did you mean 'evaluate'"),
        ([], "COMMAND"),
        (["run"], "CONFIG"),
        (["export", "runs/x", "--out", "y", "--dtype", "float8"], "unknown choice 'float8'"),
    ],
)
def test_a_mistyped_command_is_one_line_with_a_suggestion(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and re.search(message, error), error


@pytest.mark.parametrize("what", ["runs/demo", None, 3])
def test_run_takes_a_run(what):
    with pytest.raises(UserError, match=r"run: expected a run, which open_run\(folder, config\) returns"):
        rlaif_jax.run(what)


def test_doctor_shows_versions_devices_and_no_key(capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-123456789")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("rlaif_jax", "jax", "devices", "GiB", "CPU cores")) and "secret" not in text
