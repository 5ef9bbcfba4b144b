"""The fake cloud on PATH, and a way to call the scripts."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tpu_scripts import fake_cloud

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tpu_scripts"
BASE = {"RLAIF_PROJECT": "p", "RLAIF_ZONE": "us-west4-a", "RLAIF_NAME": "t", "RLAIF_ACCELERATOR": "v5litepod-64"}
FAST = {"RLAIF_POLL": "0", "RLAIF_PAUSE": "0", "RLAIF_GRACE": "5", "RLAIF_FLAGS": "none"}
WORKER_PYTHON = f"""#!/usr/bin/env bash
# python3.13 of a worker, and the python of its virtual environment
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin" && ln -s "{{self}}" "$3/bin/python"
elif [ "$1 $2" = "-m pip" ]; then
  echo "$*" >>"$HOME/pip.log"
else
  exec {sys.executable} "$@"
fi
"""


class Bench:
    """A fake cloud in a folder, and the scripts run against it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.plan(workers=2)
        for name, text in (("bin", ""), ("worker_bin", WORKER_PYTHON)):
            (folder / name).mkdir()
            tools = ("gcloud", "ssh", "scp", "srun", "xpk") if name == "bin" else ("python3.13",)
            for tool in tools:
                path = folder / name / tool
                body = Path(fake_cloud.__file__).read_text().split("\n", 0)[0]
                path.write_text(text.replace("{self}", str(path)) or f"#!{sys.executable}\n{body}")
                path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def plan(self, **plan: object) -> None:
        """What the cloud will do; see `fake_cloud.Cloud`."""
        (self.folder / "plan.json").write_text(json.dumps({"workers": 2} | plan))

    def run(self, script: str, *arguments: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess:
        """One script, with the options that every script needs in the environment."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RLAIF_", "XLA_", "JAX_", "SLURM_"))}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        env = kept | BASE | FAST | {"PATH": path, "FAKE_CLOUD": str(self.folder), "TMPDIR": str(self.folder)} | env
        return subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments], env=env, capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def ok(self, script: str, *arguments: str, **env: str) -> str:
        """Its standard output; the script must succeed."""
        done = self.run(script, *arguments, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def calls(self) -> list[list[str]]:
        """Every command line of gcloud and the others, in order."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        """Of the gcloud calls: create, describe, delete, ssh, scp; describes in a row count once."""
        verbs = [call[4] for call in self.calls if call[0] == "gcloud"]
        return [v for i, v in enumerate(verbs) if v != "describe" or i == 0 or verbs[i - 1] != "describe"]

    def home(self, worker: object = 0) -> Path:
        """A worker's home folder."""
        return self.folder / "workers" / str(worker)

    def wait_for(self, text: str, worker: object = 0, job: str = "rlaif") -> str:
        """The log of a job, once `text` stands in it."""
        path = self.home(worker) / "rlaif_jobs" / job / "log"
        for _ in range(300):
            log = path.read_text() if path.exists() else ""
            if text in log:
                return log
            time.sleep(0.1)
        raise AssertionError(f"{text!r} is not in {path}: {log!r}")


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    fake_cloud.kill_jobs(tmp_path)


@pytest.fixture
def ready(bench) -> Bench:
    """A TPU that is created and set up."""
    bench.ok("create.sh")
    bench.ok("setup.sh")
    return bench
