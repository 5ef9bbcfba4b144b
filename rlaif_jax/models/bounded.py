"""Work on what a model folder says, in a process of its own with limits on time and memory."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rlaif_jax.models import folder_worker

_SECONDS = 30.0  # by the clock, if the machine is busy; the limit of the process itself is shorter


class _Worker:
    """The process: started when it is needed, and anew after a job has broken it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner, self._lock = 0, threading.Lock()

    def ask(self, job: Any) -> Any:
        """See the function."""
        with self._lock:
            process, answer = self._running(), b""
            try:
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
                answer = self._line(process, time.monotonic() + _SECONDS)
            except OSError:
                pass  # the process died
            finally:
                if not answer.endswith(b"\n"):
                    process.kill()
                    process.wait()
        if not answer.endswith(b"\n"):
            raise TimeoutError(f"needs more than {folder_worker.SECONDS:.0f} s or {folder_worker.MEGABYTES} MiB")
        return json.loads(answer)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            command = [sys.executable, "-P", str(Path(folder_worker.__file__))]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            self._owner = os.getpid()
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], deadline: float) -> bytes:
        """One line; what there is of it if the process ends or the time is over."""
        found = b""
        while not found.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
            if select.select([process.stdout], [], [], left)[0]:
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    break
                found += piece
        return found


_WORKER = _Worker()


def ask(job: Any) -> Any:
    """The answer of `folder_worker` to a job. TimeoutError, which says the limits, if it takes too much time or memory."""
    return _WORKER.ask(job)
