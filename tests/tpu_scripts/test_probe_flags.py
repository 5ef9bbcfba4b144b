"""Flags that XLA does not know are dropped, and said; the probe is a child process."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.tpu_scripts.conftest import SCRIPTS

PATH = SCRIPTS / "probe_flags.py"


def _module():
    spec = importlib.util.spec_from_file_location("probe_flags", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    command = [sys.executable, str(PATH), *arguments]
    return subprocess.run(command, env=kept | env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("bad", "clash", "kept", "calls"),
    [
        ((), False, ["--a=1", "--b=2", "--c=3"], 1),
        (("--b=2",), False, ["--a=1", "--c=3"], 5),
        (("--a=1", "--b=2", "--c=3"), False, [], 4),
        ((), True, [], 4),  # each alone is fine, together they are not: the set is left out
    ],
)
def test_known(bad, clash, kept, calls):
    asked = []

    def accept(flags):
        asked.append(list(flags))
        return not set(flags) & set(bad) and not (clash and len(flags) > 1)

    assert _module().known(["--a=1", "--b=2", "--c=3"], accept) == kept
    assert len(asked) == calls


def test_a_real_xla_drops_what_it_does_not_know(tmp_path):
    """On the CPU backend, whose XLA parses the flags of GPUs too."""
    table = {"x": {"variable": "XLA_FLAGS", "flags": ["--xla_no_such_flag=1", "--xla_gpu_enable_latency_hiding_scheduler=true"]}}
    (tmp_path / "flags.json").write_text(json.dumps(table))
    script = tmp_path / "probe_flags.py"
    script.write_text(PATH.read_text())
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    show = [sys.executable, "-c", "import os; print('flags', os.environ['XLA_FLAGS'])"]
    done = subprocess.run(
        [sys.executable, str(script), "x", "--", *show], env=env | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    assert "dropped --xla_no_such_flag=1" in done.stdout
    assert "flags --xla_gpu_enable_latency_hiding_scheduler=true\n" in done.stdout


def test_the_users_own_flags_come_last(tmp_path, monkeypatch):
    module = _module()
    monkeypatch.setattr(module, "accepts", lambda spec, flags: True)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--mine=1")
    assert module.environment("v5e", lambda text: None)["LIBTPU_INIT_ARGS"].endswith("=true --mine=1")
    assert module.environment("none", lambda text: None) == {}


def test_without_the_accelerator_the_command_still_runs_and_its_exit_code_is_kept():
    done = _run("none", "--", sys.executable, "-c", "import sys; sys.exit(7)")
    assert done.returncode == 7
    pytest.importorskip("jax")
    if importlib.util.find_spec("libtpu") is None:
        done = _run("v5e", "--", "echo", "ran", JAX_PLATFORMS="cpu")
        assert done.returncode == 0 and "does not start here even without flags" in done.stdout and "ran" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "probe_flags.py v5e"),
        (("v9",), 2, "no set of flags is named 'v9'"),
        (("none", "--", "no-such-tool"), 127, "cannot run"),
    ],
)
def test_mistakes_are_named(arguments, code, message):
    done = _run(*arguments)
    assert done.returncode == code and message in done.stderr


def test_every_accelerator_has_a_set():
    table = json.loads((SCRIPTS / "flags.json").read_text())
    assert set(table) == {"v4", "v5e", "v5p", "v6e", "h100", "h200"}
    for spec in table.values():
        assert spec["variable"] == ("LIBTPU_INIT_ARGS" if "topology" in spec else "XLA_FLAGS")
        names = [flag.partition("=")[0] for flag in spec["flags"]]
        assert len(set(names)) == len(names) and all(name.startswith("--xla_") for name in names)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu-aot]'")
@pytest.mark.parametrize("name", ["v4", "v5e", "v5p", "v6e"])
def test_libtpu_takes_the_set_and_refuses_nonsense(name):
    module = _module()
    spec = json.loads((SCRIPTS / "flags.json").read_text())[name]
    assert module.accepts(spec, spec["flags"])
    assert not module.accepts(spec, ["--xla_no_such_flag=1"])
