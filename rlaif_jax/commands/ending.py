"""How a command ends: one line for a mistake, a signal, a full disk or a closed pipe, and the exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from rlaif_jax.errors import EXIT_RESTART, EXIT_USER_ERROR, Interrupted, Preempted, UserError

_EXIT_PIPE = 141  # as of a program that SIGPIPE ends
_INTERRUPTED = "interrupted; start the same command again to resume from the last checkpoint"


def end_of(error: BaseException, *, interrupted: bool, resumable: bool) -> tuple[int, str]:
    """Exit code and line for what ended a command; raises the error again where it is a fault of the program.

    `interrupted`: whether SIGINT came. `resumable`: whether the command runs stages.
    """
    if isinstance(error, Interrupted):
        return 130, f"{error}; start the same command again to resume"
    if interrupted or isinstance(error, KeyboardInterrupt):  # a library may turn it into another error
        return 130, _INTERRUPTED
    if isinstance(error, UserError):
        return EXIT_USER_ERROR, f"error: {error}"
    if isinstance(error, Preempted):
        return EXIT_RESTART, f"{error}; start the same command again to resume"
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail at exit, when it flushes
        resume = "what reads the output has ended, and so did the run; start the same command again to resume"
        return _EXIT_PIPE, resume if resumable else ""
    if isinstance(error, OSError) and error.errno is not None:
        return EXIT_USER_ERROR, f"error: {error.filename or 'a file'}: {error.strerror}"
    raise error


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """The SIGINTs that came while the context was open; each also raises KeyboardInterrupt.

    One that comes during an import ends the process at once: a half-imported extension module raises any error, or crashes.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if _imports(frame):
            os.write(sys.stderr.fileno(), f"rlaif: {_INTERRUPTED}\n".encode())
            os._exit(130)
        signal.default_int_handler(number, frame)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield came
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
