"""`import rlaif_jax`: quick, lazy, complete, and every name is what it says."""

import importlib
import subprocess
import sys

import pytest

import rlaif_jax
from rlaif_jax.cli import main


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_takes_no_time_and_loads_no_jax():
    code = "import time; t = time.perf_counter(); import rlaif_jax, sys; print(time.perf_counter() - t, 'jax' in sys.modules)"
    seconds, loaded = _run(code).split()
    assert float(seconds) < 0.2 and loaded == "False"


def test_no_backend_starts_before_it_is_needed():
    code = (
        "import rlaif_jax as rj; from jax._src import xla_bridge; "
        "[getattr(rj, name) for name in rj.__all__]; import rlaif_jax.config; print(len(xla_bridge._backends))"
    )
    assert _run(code) == "0"


def test_every_public_name_is_there_and_listed_once():
    assert set(rlaif_jax.__all__) - {"__version__"} == set(rlaif_jax._HOMES) and sorted(rlaif_jax.__all__) == rlaif_jax.__all__
    for name in rlaif_jax.__all__:
        assert getattr(rlaif_jax, name) is not None
    importlib.import_module("rlaif_jax.runs.folder")  # a subpackage must not take the place of a function

    assert callable(rlaif_jax.run) and callable(rlaif_jax.export)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.strip() == f"rlaif_jax {rlaif_jax.__version__}"
