"""The fake cloud itself: the scripts call its tools at the same time."""

import json
import os
import subprocess


def test_calls_at_once_lose_nothing(bench):
    bench.plan(states=["WAITING_FOR_RESOURCES"] * 99)
    bench.ok("create.sh")
    command = ["gcloud", "compute", "tpus", "queued-resources", "describe", "t", "--project=p", "--zone=z", "--format=x"]
    env = os.environ | {"PATH": f"{bench.folder / 'bin'}:{os.environ['PATH']}", "FAKE_CLOUD": str(bench.folder)}
    running = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for _ in range(12)]
    assert [process.wait() for process in running] == [0] * 12
    assert json.loads((bench.folder / "state.json").read_text())["seen"] == 12


def test_hosts_that_ssh_reaches_share_no_state(bench):
    for host in ("g0", "g1"):
        bench.home(host).mkdir(parents=True)
    bench.ok("gpu_hosts.sh", "sync", "--hosts", "g0,g1")
    assert not (bench.folder / "state.json").exists()
