"""`rlaif launch`: starts the processes of a run, and starts them all again when one dies.

A process that loses a peer is aborted without a Python exception, so nobody inside can mend it. The supervisor stands
outside: as soon as one process ends badly it ends the others and begins anew; the run goes on from its last checkpoint.
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
      local: processes on this machine, with virtual CPU devices; 0 = one process, in the environment as it is (on each
        host of a TPU or GPU cluster).
      devices: virtual CPU devices of each process.
      restarts: how often in a row to start again; the count begins anew once a start has lived for `healthy` seconds.
      backoff: seconds before the first restart; doubled each time, at most a minute.
      grace: seconds that the others have to end by themselves before they are killed.
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
    """Runs `command` until all of its processes end well; returns the exit code.

    0: all ended well. 2: a user's mistake, which a restart would repeat. EXIT_RESTART: the supervisor was told to stop and
    the run is saved. Anything else: the code of the process that died last, after `restarts` restarts.
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
            why = "was told to stop and has saved" if code == EXIT_RESTART else f"died ({_reason(code)})"
            say(f"a process {why}; all start again in {wait:.0f} s (restart {failures} of {cfg.restarts})")
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
        # A session of its own: Ctrl-C reaches the supervisor alone, which then tells every process.
        processes.append(subprocess.Popen(list(command), env=env, start_new_session=True))
    return processes


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _watch(processes: list[subprocess.Popen], cfg: Launch, stop: threading.Event) -> int:
    """Waits until all have ended well, or one has not; then ends the rest. The code: 0, or that of the first bad end."""
    while None in (codes := [p.poll() for p in processes]) and not any(codes) and not stop.is_set():
        time.sleep(0.05)
    code, told = next((c for c in codes if c), 0), stop.is_set()
    # Told to stop, the processes save; after a death there is nothing to save with, but a mistake may be on its way out.
    _end(processes, signal.SIGTERM if told else None, cfg.grace if told or code in (EXIT_RESTART, EXIT_USER_ERROR) else 2.0)
    codes = [p.returncode for p in processes]
    if told:
        return EXIT_RESTART if any(codes) else 0
    return code or next((c for c in codes if c), 0)


def _end(processes: list[subprocess.Popen], number: int | None, grace: float) -> None:
    """Tells them to end, waits, and kills those that have not."""
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
    """In a process that `rlaif launch` started: ends it when the supervisor is gone, so that no two runs share a folder."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        print("rlaif: the supervisor is gone; this process ends", file=sys.stderr)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="supervisor-watch").start()
