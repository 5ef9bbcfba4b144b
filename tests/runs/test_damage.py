"""Damage of a run folder: what was lost, emptied or changed is named before it is used, and one program at a time works there."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rlaif_jax.cli import main
from rlaif_jax.errors import UserError
from rlaif_jax.runs.folder import open_run
from rlaif_jax.runs.models import RunModels
from rlaif_jax.stages import pipeline
from tests import tiny

QUIET = Console(quiet=True)


@pytest.fixture
def run(tmp_path):
    """A run whose tokenizer stage has finished."""
    x = open_run(tmp_path / "run", tiny.config(), QUIET)
    pipeline.run(x, ["tokenizer"])
    return x


def _once(call) -> str:
    """The error of a call, which is one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", ["corpus/sft.jsonl", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"])
def test_an_artefact_that_was_changed_or_lost_is_named_with_the_mark_to_delete(run, name):
    path, whole = run.folder("tokenizer") / name, (run.folder("tokenizer") / name).read_bytes()
    marker = run.folder("tokenizer") / "done.json"
    flipped = bytes([*whole[:100], whole[100] ^ 1, *whole[101:]])
    for content in (b"", whole[:-20], flipped, None):
        path.unlink() if content is None else path.write_bytes(content)
        for use in (lambda: pipeline.run(run, ["tokenizer"]), lambda: pipeline.run(run, ["sft"]), lambda: RunModels(run).tokenizer):
            error = _once(use)
            assert str(path) in error and str(marker) in error, error
    marker.unlink()  # what the error says
    pipeline.run(run, ["tokenizer"])
    assert path.read_bytes() == whole, "made again, the same"


@pytest.mark.parametrize("content", ["", "{}x", '{"seconds": 1.0, "version": 2}', "[]", "\x00\x00"])
def test_a_broken_done_mark_is_not_done_and_is_named(run, content):
    marker = run.folder("tokenizer") / "done.json"
    marker.write_text(content)
    for use in (lambda: pipeline.run(run, ["tokenizer"]), lambda: pipeline.run(run, ["sft"])):
        error = _once(use)
        assert str(marker) in error and "Delete it" in error
    marker.unlink()
    pipeline.run(run, ["tokenizer"])


def test_a_broken_begun_mark_is_named(run):
    (run.folder("tokenizer") / "done.json").unlink()
    for content in ("", '{"version": 2}', "[]"):
        (run.folder("tokenizer") / "begun.json").write_text(content)
        error = _once(lambda: run.mark_begun(dataclasses.replace(pipeline.stage_of(run.cfg, "sft"), name="tokenizer")))
        assert str(run.folder("tokenizer") / "begun.json") in error and "Move" in error


def test_a_broken_config_is_named_and_written_anew_where_every_stage_began_with_the_same(run, capsys):
    saved = run.out / "config.json"
    whole = saved.read_bytes()
    for content in (b"", whole[:300], whole.replace(b'"seed": 0', b'"seed": 1'), b"\xff" + whole, b"[1]"):
        assert content != whole
        saved.write_bytes(content)
        assert str(saved) in _once(lambda: open_run(run.out, console=QUIET))
        assert str(saved) in _once(lambda: open_run(run.out, dataclasses.replace(run.cfg, seed=5), QUIET))
        open_run(run.out, run.cfg, Console(width=500))
        assert "written anew" in capsys.readouterr().out and saved.read_bytes() == whole
    saved.unlink()
    assert "holds no run" in _once(lambda: open_run(run.out, dataclasses.replace(run.cfg, seed=5), QUIET))
    open_run(run.out, run.cfg, QUIET)
    assert saved.read_bytes() == whole


def test_opening_a_run_changes_nothing(run):
    before = {p: p.stat().st_mtime_ns for p in run.out.rglob("*")}
    open_run(run.out, console=QUIET)
    open_run(run.out, run.cfg, QUIET)
    assert {p: p.stat().st_mtime_ns for p in run.out.rglob("*")} == before


def test_a_second_program_in_the_folder_is_refused_and_names_the_first(run, tmp_path):
    config = tmp_path / "config.py"
    config.write_text("from tests import tiny\n\n\ndef config():\n    return tiny.config()\n")
    command = [sys.executable, "-m", "rlaif_jax.cli", "tokenizer", str(config), "--out", str(run.out)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": ""}
    with run.locked():
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert f"{run.out} is in use by process {os.getpid()} on " in done.stderr
        assert "in use by process" in _once(lambda: pipeline.run(run, ["tokenizer"]))
        open_run(run.out, console=QUIET)  # reading needs no lock
    pipeline.run(run, ["tokenizer"])
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, os, time; f = open({str(run.out / '.lock')!r}); fcntl.flock(f, fcntl.LOCK_EX); "
         "print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE,
    )  # fmt: skip
    holder.stdout.readline()
    assert "in use by" in _once(lambda: pipeline.run(run, ["tokenizer"]))
    holder.kill()
    holder.wait()
    pipeline.run(run, ["tokenizer"])  # a dead process holds no lock


def test_a_report_that_was_changed_is_written_again(run, monkeypatch, capsys):
    x = dataclasses.replace(run, console=Console(width=500))
    for stage in pipeline.stages_of(x.cfg):
        x.folder(stage).mkdir(exist_ok=True)
        x.mark_done(stage, 0.0, {})
    (x.folder("report") / "report.html").write_text("old")
    x.mark_done("report", 0.0, {})
    (x.folder("report") / "report.html").write_text("damaged")
    monkeypatch.setattr(pipeline, "KINDS", {"report": lambda *_: {}})
    pipeline.run(x, ["report"])
    assert "report.html is damaged" in (said := " ".join(capsys.readouterr().out.split())) and "written again" in said


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    def refuses(*_):
        raise PermissionError(13, os.strerror(13))

    (tmp_path / "run").mkdir()
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"name": "tiny"}))
    monkeypatch.setattr(os, "fsync", refuses)  # the tests may run as root, who may write everywhere
    assert main(["tokenizer", str(config), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path / 'run' / 'config.json'} cannot be written: Permission denied" in error
