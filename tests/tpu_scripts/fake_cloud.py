"""A cloud for the tests of tpu_scripts/: stands on PATH as gcloud, ssh, scp, srun and xpk, and runs what it is told on
"workers" that are folders of this machine. Every call is written down; flags that gcloud's generally available surface
does not have are refused, as gcloud would.

The folder $FAKE_CLOUD holds `plan.json` (see `Cloud`), `state.json`, `calls.jsonl` and `workers/N`, their home folders.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WIDE = {"project", "quiet", "format"}
# `gcloud help compute tpus ...` of version 528, without alpha and beta.
GENERALLY_AVAILABLE = {
    ("queued-resources", "create"): {
        "zone", "accelerator-type", "async", "data-disk", "description", "guaranteed", "internal-ips", "labels", "metadata",
        "metadata-from-file", "network", "node-count", "node-id", "node-prefix", "range", "reserved", "runtime-version",
        "scopes", "service-account", "shielded-secure-boot", "spot", "subnetwork", "tags", "topology", "type",
        "valid-after-duration", "valid-after-time", "valid-until-duration", "valid-until-time",
    },
    ("queued-resources", "delete"): {"zone", "async", "force"},
    ("queued-resources", "describe"): {"zone"},
    ("tpu-vm", "describe"): {"zone"},
    ("tpu-vm", "ssh"): {
        "zone", "command", "dry-run", "force-key-file-overwrite", "internal-ip", "output-directory", "plain", "ssh-flag",
        "ssh-key-expiration", "ssh-key-expire-after", "ssh-key-file", "strict-host-key-checking", "worker",
    },
    ("tpu-vm", "scp"): {
        "zone", "compress", "dry-run", "force-key-file-overwrite", "internal-ip", "plain", "recurse", "scp-flag",
        "ssh-key-expiration", "ssh-key-expire-after", "ssh-key-file", "strict-host-key-checking", "worker",
    },
}  # fmt: skip
STOCKOUT = "ERROR: (gcloud.compute.tpus.queued-resources.create) There is no more capacity in the zone us-west4-a"
QUOTA = "ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptible' has been exceeded. Limit: 8 in zone us-west4-a."
EXISTS = "ERROR: ALREADY_EXISTS: Resource 'projects/p/locations/us-west4-a/queuedResources/t' already exists"
ERRORS = {"stockout": STOCKOUT, "quota": QUOTA, "exists": EXISTS, "denied": "ERROR: PERMISSION_DENIED: no"}
BUSY = "ERROR: (gcloud.compute.tpus.queued-resources.delete) HttpError 503: The service is currently unavailable."


class Cloud:
    """State of the fake cloud.

    plan.json: workers (hosts of a TPU); create: what each request answers ("ok" or a key of ERRORS; "ok" once it is
    used up); states: what each look at a queued resource tells before ACTIVE ("PREEMPT" ends the TPU and tells
    SUSPENDED); preempt_after: job status calls after which the TPU is preempted; busy: so many deletions
    fail; deaf: so many TPUs let nobody ask for the job's status; stray: there is a TPU that no request made;
    answer_lost: the first request is granted, and its answer does not arrive.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.plan = json.loads((folder / "plan.json").read_text())
        self.state = self.load()

    def load(self) -> dict:
        state = self.folder / "state.json"
        new = {"tpu": None, "seen": 0, "status_calls": 0, "created": 0, "deleted": 0}
        return json.loads(state.read_text()) if state.exists() else new

    @contextmanager
    def changing(self) -> Iterator[None]:
        """The scripts call several tools at once: one changes the state at a time, and a reader never sees half of it."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.state = self.load()
            yield
            new = self.folder / "state.json.new"
            new.write_text(json.dumps(self.state))
            os.replace(new, self.folder / "state.json")

    def home(self, worker: object) -> Path:
        return self.folder / "workers" / str(worker)

    def preempt(self) -> None:
        """The machines vanish, with their processes and disks."""
        kill_jobs(self.folder)
        shutil.rmtree(self.folder / "workers", ignore_errors=True)
        self.state["tpu"] = "PREEMPTED"

    def create(self) -> int:
        answers = self.plan.get("create", [])
        answer = answers[self.state["created"]] if self.state["created"] < len(answers) else "ok"
        self.state["created"] += 1
        if answer != "ok" or self.state["tpu"]:
            print(ERRORS.get(answer, EXISTS), file=sys.stderr)
            return 1
        self.state |= {"tpu": "READY"}
        for worker in range(self.plan["workers"]):
            self.home(worker).mkdir(parents=True)
        if self.plan.get("answer_lost") and self.state["created"] == 1:
            print("ERROR: the connection was reset", file=sys.stderr)
            return 1
        return 0

    def describe(self, group: str, form: str) -> int:
        if self.state["tpu"] is None and group == "tpu-vm" and self.plan.get("stray"):
            print("READY")
        elif self.state["tpu"] is None:
            print("ERROR: NOT_FOUND: Resource was not found", file=sys.stderr)
            return 1
        if form == "value(networkEndpoints[].ipAddress)":
            print(";".join(f"10.0.0.{i}" for i in range(self.plan["workers"])))
        elif group == "tpu-vm":
            print(self.state["tpu"])
        elif self.state["tpu"] == "PREEMPTED":
            print("SUSPENDED")
        else:
            states = self.plan.get("states", [])
            told = states[self.state["seen"]] if self.state["seen"] < len(states) else "ACTIVE"
            self.state["seen"] += 1
            if told == "DOWN":
                print("ERROR: cannot reach the service", file=sys.stderr)
                return 1
            print(told)
        return 0

    def delete(self) -> int:
        self.state["deleted"] += 1
        if self.state["deleted"] <= self.plan.get("busy", 0):
            print(BUSY, file=sys.stderr)
            return 1
        kill_jobs(self.folder)
        shutil.rmtree(self.folder / "workers", ignore_errors=True)
        code = 0 if self.state["tpu"] else 1
        self.state["tpu"] = None
        return code

    def shell(self, worker: object, command: str, stdin: object = None) -> int:
        """`command` in the home of a worker, with the worker's own PATH."""
        home = self.home(worker)
        if not home.exists():
            print(f"ssh: connect to host {worker} port 22: Connection refused", file=sys.stderr)
            return 255
        env = {"HOME": str(home), "PATH": f"{self.folder / 'worker_bin'}:/usr/bin:/bin"}
        return subprocess.run(["bash", "-c", command], cwd=home, env=env, stdin=stdin, check=False).returncode

    def ssh(self, worker: str, command: str) -> int:
        if self.state["tpu"] != "READY":
            print(f'ERROR: This TPU has terminal state "{self.state["tpu"]}", so it cannot be used anymore.', file=sys.stderr)
            return 1
        if "worker.sh status" in command and self.state["created"] <= self.plan.get("deaf", 0):
            print("Permission denied (publickey).", file=sys.stderr)
            return 255
        which = range(self.plan["workers"]) if worker == "all" else [int(worker)]
        code = max([self.shell(w, command, subprocess.DEVNULL if worker == "all" else None) for w in which])
        if "worker.sh status" in command:
            with self.changing():
                self.state["status_calls"] += 1
                if self.state["status_calls"] == self.plan.get("preempt_after"):
                    self.preempt()
        return code


def kill_jobs(folder: Path) -> None:
    """Ends the processes of this cloud's workers, each by its own number and only if its home is in this folder.

    Never by process group: a number read from a file may be wrong, and killpg(1) is kill(-1), which ends everything.
    """
    mark = f"HOME={folder / 'workers'}/".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(entry.startswith(mark) for entry in (process / "environ").read_bytes().split(b"\0")):
                os.kill(int(process.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    flags = dict(a[2:].partition("=")[::2] for a in arguments if a.startswith("--"))
    return [a for a in arguments if not a.startswith("--")], flags


def gcloud(cloud: Cloud, arguments: list[str]) -> int:
    words, flags = _split(arguments)
    if words[:2] != ["compute", "tpus"] or tuple(words[2:4]) not in GENERALLY_AVAILABLE:
        print(f"ERROR: Invalid choice: {words}", file=sys.stderr)
        return 2
    unknown = set(flags) - GENERALLY_AVAILABLE[tuple(words[2:4])] - WIDE
    if unknown or not {"project", "zone"} <= set(flags):
        print(f"ERROR: unrecognized arguments: {unknown}", file=sys.stderr)
        return 2
    group, verb, *rest = words[2:]
    if verb in ("create", "describe", "delete"):
        with cloud.changing():
            return cloud.describe(group, flags["format"]) if verb == "describe" else getattr(cloud, verb)()
    if verb == "ssh":
        return cloud.ssh(flags["worker"], flags["command"])
    for worker in range(cloud.plan["workers"]):  # scp --worker=all FILE NAME:FILE
        shutil.copy(rest[0], cloud.home(worker) / rest[1].partition(":")[2])
    return 0


def ssh(cloud: Cloud, arguments: list[str]) -> int:
    assert arguments[:2] == ["-o", "BatchMode=yes"] and len(arguments) == 4
    return cloud.shell(arguments[2], arguments[3])


def scp(cloud: Cloud, arguments: list[str]) -> int:
    host, _, name = arguments[2].partition(":")
    shutil.copy(arguments[1], cloud.home(host) / name)
    return 0


def xpk(cloud: Cloud, arguments: list[str]) -> int:
    for name, value in _split(arguments)[1].items():
        if name == "env-file":
            (cloud.folder / "xpk_env").write_text(Path(value).read_text())
    return 0


def main() -> int:
    cloud = Cloud(Path(os.environ["FAKE_CLOUD"]))
    tool, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    with (cloud.folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps([tool, *arguments]) + "\n")
    if tool == "srun":
        return 0
    return {"gcloud": gcloud, "ssh": ssh, "scp": scp, "xpk": xpk}[tool](cloud, arguments)


if __name__ == "__main__":
    sys.exit(main())
