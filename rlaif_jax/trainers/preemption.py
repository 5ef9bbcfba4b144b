"""Notices SIGTERM and Ctrl-C between two training steps, so that the loop can save a checkpoint and exit."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax

_steps = itertools.count(1)  # shared by all stages of this process: JAX needs a step number that only grows


@contextlib.contextmanager
def preemption_notice(say: Callable[[str], None] = lambda text: None) -> Iterator[Callable[[], signal.Signals | None]]:
    """Yields a function that returns the signal to stop for, or None; call it once after every step.

    With several processes, a SIGTERM to any one of them counts, and all processes get it after the same step: JAX's coordination
    service handles the signal and agrees on the step. With one process, SIGTERM and the first Ctrl-C (SIGINT, the stop button of a
    notebook) are handled here while the context is open; `say` gets a line at once, and a second Ctrl-C raises KeyboardInterrupt.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield lambda: signal.SIGTERM if multihost_utils.reached_preemption_sync_point(next(_steps)) else None
        return
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield lambda: None
        return
    received: list[signal.Signals] = []

    def note(number: int, _frame: object) -> None:
        received.append(signal.Signals(number))
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
            say("stopping after this step, which is then saved; Ctrl-C again stops at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
