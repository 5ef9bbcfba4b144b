"""The supervisor: restarts, bounds, signals; with processes that are a few lines of Python."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlaif_jax.cli import main
from rlaif_jax.commands.launch import Launch, supervise

# Process i of start n does what `plan[n][i]` says; each line of the log is a start.
WORKER = """
import os, pathlib, signal, sys, time
folder, me = pathlib.Path(sys.argv[1]), int(os.environ["JAX_PROCESS_ID"])
log = folder / f"log{me}"
start = len(log.read_text().splitlines()) if log.exists() else 0
with log.open("a") as file:
    file.write(f'{os.getpid()} {os.environ["JAX_COORDINATOR_ADDRESS"]} {os.environ["XLA_FLAGS"]}\\n')
plan = eval(sys.argv[2])
deed = plan[min(start, len(plan) - 1)][me]
if deed == "wait":
    time.sleep(120)
if deed == "save":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / f"ready{me}").touch()
    time.sleep(120)
while me and not (folder / "log0").exists():
    time.sleep(0.01)
sys.exit(deed)
"""


def _supervise(folder, plan, **options):
    said = []
    cfg = Launch(local=2, devices=3, **{"backoff": 0.01, **options})
    began = time.monotonic()
    code = supervise([sys.executable, "-c", WORKER, str(folder), repr(plan)], cfg, said.append)
    starts = [len((folder / f"log{i}").read_text().splitlines()) for i in (0, 1)]
    return code, starts, said, time.monotonic() - began


def test_all_end_well(tmp_path):
    code, starts, said, _ = _supervise(tmp_path, [[0, 0]])
    assert (code, starts, said) == (0, [1, 1], [])
    lines = [(tmp_path / f"log{i}").read_text().split() for i in (0, 1)]
    assert lines[0][1] == lines[1][1] and lines[0][1].startswith("127.0.0.1:")
    assert "--xla_force_host_platform_device_count=3" in lines[0]


def test_one_death_restarts_all(tmp_path):
    code, starts, said, seconds = _supervise(tmp_path, [["wait", 3], [0, 0]])
    assert (code, starts) == (0, [2, 2]) and seconds < 60, "the one that waited was ended"
    assert len(said) == 1 and "exit code 3" in said[0] and "restart 1 of 5" in said[0]


def test_restarts_are_bounded_and_back_off(tmp_path):
    code, starts, said, seconds = _supervise(tmp_path, [[3, 3]], restarts=2, backoff=0.2)
    assert (code, starts) == (3, [3, 3]) and "gave up after 2" in said[-1]
    assert seconds > 0.2 + 0.4


def test_a_start_that_lived_long_enough_resets_the_count(tmp_path):
    code, starts, _, _ = _supervise(tmp_path, [[3, 3], [3, 3], [3, 3], [0, 0]], restarts=1, healthy=0.0)
    assert (code, starts) == (0, [4, 4])


def test_a_users_mistake_is_not_tried_again(tmp_path):
    code, starts, said, _ = _supervise(tmp_path, [["wait", 2]], grace=0.5)
    assert (code, starts, said) == (2, [1, 1], [])


def test_a_saved_run_starts_again_at_once(tmp_path):
    code, starts, said, _ = _supervise(tmp_path, [[75, 75], [0, 0]], backoff=30)
    assert (code, starts) == (0, [2, 2]) and "has saved" in said[0]


def test_told_to_stop_it_tells_every_process_and_does_not_restart(tmp_path):
    def stop():
        while not all((tmp_path / f"ready{i}").exists() for i in (0, 1)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    code, starts, _, _ = _supervise(tmp_path, [["save", "save"]])
    assert (code, starts) == (75, [1, 1])
    assert signal.getsignal(signal.SIGTERM) is before


def _dies_with(supervisor: subprocess.Popen, pid: int | str) -> None:
    """Kills the supervisor; its child must be gone soon after."""
    supervisor.kill()
    supervisor.wait()
    limit = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < limit:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_process_does_not_outlive_its_supervisor(tmp_path):
    child = "import time, rlaif_jax.commands.launch as l; l.end_with_supervisor(); print('up', flush=True); time.sleep(60)"
    middle = (
        "import os, subprocess, sys; os.environ['RLAIF_SUPERVISOR'] = str(os.getpid());"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, start_new_session=True);"
        "child.stdout.readline(); print(child.pid, flush=True); child.wait()"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pid = int(supervisor.stdout.readline())
    _dies_with(supervisor, pid)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--local", "2", "--", "generate", "x"], "found 'generate x'"),
        (["--local", "2"], "found nothing"),
        (["--local", "-1", "--", "run", "x"], "at least 0"),
        (["--", "run", "nowhere.py"], "nowhere.py does not exist"),
        (["--", "run", "x.py", "--dry-run"], "without launch"),
        (["--grace", "-1", "--", "run", "x.py"], "--grace"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(command, message, capfd):
    assert main(["launch", *command]) == 2
    assert message in capfd.readouterr().err


def test_a_folder_that_cannot_be_is_a_mistake_and_not_tried_again(tmp_path, capfd):
    (tmp_path / "file").touch()
    (tmp_path / "config.py").write_text("from tests.tiny import config\n")
    command = ["run", str(tmp_path / "config.py"), "--out", str(tmp_path / "file")]
    assert main(["launch", "--local", "2", *["--", *command]]) == 2
    said = capfd.readouterr().err
    assert f"--out {tmp_path / 'file'} cannot be a run's folder" in said and "Traceback" not in said and "restart" not in said


def test_a_process_that_waits_for_others_does_not_outlive_its_supervisor(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (tmp_path / "config.py").write_text("from tests.tiny import config\n")
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    command = [sys.executable, "-m", "rlaif_jax.cli", "launch", "--", "tokenizer", str(tmp_path / "config.py"), "--out",
               str(tmp_path / "run")]  # fmt: skip
    supervisor = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert "waiting at 127.0.0.1" in next(line for line in supervisor.stderr if line.startswith("rlaif:"))
    (pid,) = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
    _dies_with(supervisor, pid)


def test_a_port_that_another_program_has_is_a_mistake(tmp_path, capfd):
    (tmp_path / "config.py").write_text("from tests.tiny import config\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        env = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        command = [sys.executable, "-m", "rlaif_jax.cli", "tokenizer", str(tmp_path / "config.py"), "--out", str(tmp_path / "run")]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"cannot listen on {address}" in done.stderr and "Traceback" not in done.stderr
