"""`rlaif launch`: starts the processes of a run, and restarts all of them when one dies.

JAX aborts a process that loses a peer, without a Python exception, so the run cannot recover by itself. `rlaif launch` is a
separate process, the supervisor: when one process fails, it ends the other ones and starts all again. The run continues
from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from rlaif_jax.errors import EXIT_RESTART, EXIT_USER_ERROR

_PARENT = "RLAIF_SUPERVISOR"


@dataclasses.dataclass(frozen=True)
class Launch:
    """How many processes to start and how to restart them.

    Attributes:
      local: number of processes on this machine, with virtual CPU devices. 0 = one process in the unchanged environment;
        use it on each host of a TPU or GPU cluster.
      devices: virtual CPU devices per process.
      restarts: restarts in a row before giving up.
      backoff: seconds before the first restart; doubled each time, at most 60.
      healthy: a start that ran for more than this many seconds resets the count of restarts.
      grace: seconds that processes have to end by themselves before they are killed.
    """

    local: int = 0
    devices: int = 1
    restarts: int = 5
    backoff: float = 1.0
    healthy: float = 600.0
    grace: float = 60.0


def supervise(
    command: Sequence[str], cfg: Launch, say: Callable[[str], None], start: Callable[..., list] | None = None
) -> int:
    """Runs `command` until all its processes succeed; returns the exit code.

    0: all succeeded. 2: a user's mistake, which is not restarted. EXIT_RESTART: the supervisor got SIGTERM or Ctrl-C and the
    run is saved. Any other code: that of the process that died last, after `restarts` restarts.
    """
    begin = start or _start
    stop = threading.Event()
    handlers = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        failures = 0
        while True:
            began = time.monotonic()
            code = _watch(begin(command, cfg), cfg, stop)
            if code in (0, EXIT_USER_ERROR) or stop.is_set():
                return code
            failures = 1 if time.monotonic() - began > cfg.healthy else failures + 1
            if failures > cfg.restarts:
                say(f"gave up after {cfg.restarts} restarts in a row; the last process to die had exit code {code}")
                return code
            wait = 0.0 if code == EXIT_RESTART else min(cfg.backoff * 2 ** (failures - 1), 60.0)
            why = "got a signal to stop and has saved" if code == EXIT_RESTART else f"died ({_reason(code)})"
            say(f"a process {why}; restarting all processes in {wait:.0f} s (restart {failures} of {cfg.restarts})")
            if stop.wait(wait):
                return code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _reason(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _start(command: Sequence[str], cfg: Launch) -> list[subprocess.Popen]:
    port, processes = _free_port(), []
    for index in range(max(cfg.local, 1)):
        env = os.environ | {_PARENT: str(os.getpid())}
        if cfg.local:
            flags = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={cfg.devices}".strip()
            env |= {
                "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(cfg.local), "JAX_PROCESS_ID": str(index),
            }  # fmt: skip
        # In its own session: Ctrl-C reaches only the supervisor, which then sends SIGTERM to every process.
        processes.append(subprocess.Popen(list(command), env=env, start_new_session=True))
    return processes


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _watch(processes: list[subprocess.Popen], cfg: Launch, stop: threading.Event) -> int:
    """Waits until all processes have succeeded or one has failed, then ends the rest. Returns 0 or the first failure's code."""
    while None in (codes := [p.poll() for p in processes]) and not any(codes) and not stop.is_set():
        time.sleep(0.05)
    code, told = next((c for c in codes if c), 0), stop.is_set()
    # After a signal, processes need the grace period to save. After a death they cannot save and are killed soon; but after a
    # user's mistake, the other processes need time to print their own message.
    _end(processes, signal.SIGTERM if told else None, cfg.grace if told or code in (EXIT_RESTART, EXIT_USER_ERROR) else 2.0)
    codes = [p.returncode for p in processes]
    if told:
        return EXIT_RESTART if any(codes) else 0
    return code or next((c for c in codes if c), 0)


def _end(processes: list[subprocess.Popen], number: int | None, grace: float) -> None:
    """Sends them the signal (None = no signal), waits `grace` seconds, and kills those that still run."""
    for process in processes:
        if number is not None and process.poll() is None:
            process.send_signal(number)
    limit = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(limit - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_with_supervisor() -> None:
    """Called in a process that `rlaif launch` started: exits when the supervisor is gone, so that no two runs share a folder."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        print("rlaif: the supervisor is gone; exiting", file=sys.stderr)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="supervisor-watch").start()
