"""What notebooks use: plots that are really pictures, results on Drive, keys from the environment or Colab's secrets."""

import os
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console

import rlaif_jax as rj
from rlaif_jax.commands import notebook
from tests import tiny

pytest.importorskip("IPython")


@pytest.fixture
def shown(monkeypatch):
    """The pictures that a cell would show."""
    import IPython.display

    pictures = []

    class Handle:
        def update(self, image):
            pictures.append(image.data)

    def display(image, display_id):
        pictures.append(image.data)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(notebook, "_SECONDS", 0.0)
    return pictures


def test_watch_draws_while_a_stage_trains_and_from_what_it_left(tmp_path, shown):
    x = rj.open_run(tmp_path / "run", tiny.config(steps=2), Console(quiet=True))
    rj.run(x, ["tokenizer"])
    rj.watch(x, "sft", ["loss", "no_such_metric"])
    assert len(shown) >= 2 and all(data.startswith(b"\x89PNG") for data in shown)
    before = len(shown)
    rj.watch(x, ["sft"], ["loss"])
    assert len(shown) == before + 1, "a stage that was done before is drawn from its metrics"


def _colab(monkeypatch, mount=None, secrets=()):
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mount or (lambda folder: None))
    colab.userdata = types.SimpleNamespace(get=dict(secrets).__getitem__)
    google = types.ModuleType("google")
    google.colab = colab
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", colab)


def test_results_go_to_drive_where_there_is_one(monkeypatch, capsys):
    assert notebook.results_folder("demo") == Path("runs/demo")
    _colab(monkeypatch)
    assert notebook.results_folder("demo") == Path("/content/drive/MyDrive/rlaif_jax_runs/demo")
    assert notebook.results_folder("demo", keep_on_drive=False) == Path("runs/demo")

    def refused(folder):
        raise ValueError("mount failed")

    _colab(monkeypatch, refused)
    assert notebook.results_folder("demo") == Path("runs/demo") and "end with this machine" in capsys.readouterr().out


def test_a_key_comes_from_the_environment_or_from_colabs_secrets(monkeypatch, capsys):
    monkeypatch.delenv("MY_KEY", raising=False)
    assert not notebook.find_key("MY_KEY")
    _colab(monkeypatch)
    assert not notebook.find_key("MY_KEY")
    _colab(monkeypatch, secrets={"MY_KEY": "secret-value"})
    assert notebook.find_key("MY_KEY") and os.environ.pop("MY_KEY") == "secret-value"
    monkeypatch.setenv("MY_KEY", "another")
    assert notebook.find_key("MY_KEY")
    assert capsys.readouterr().out == ""
