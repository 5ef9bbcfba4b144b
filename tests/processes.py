"""Runs of several processes for tests: `rlaif launch` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MESH = ("--set", "mesh.fsdp=2", "--set", "mesh.tensor=2")


def launch(config: Path, out: Path, *stage: str, processes: int = 2, devices: int = 4, mesh=MESH) -> subprocess.Popen:
    """Starts one stage of a run under the supervisor.

    It may restart four times: once for what the test does to it, and a machine may be so busy that a start fails.
    """
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable, "-m", "rlaif_jax.cli", "launch", "--local", str(processes), "--devices-per-process", str(devices),
        "--restarts", "4", "--backoff", "0.1", "--", *stage, str(config), "--out", str(out), *mesh,
    ]  # fmt: skip
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for it, expects the exit code, and returns what was said on standard error."""
    try:
        said = process.communicate(timeout=800)[1]
    except BaseException:  # the test's time is up: the supervisor ends its processes
        process.terminate()
        raise
    assert process.returncode == code, said[-3000:]
    return said
