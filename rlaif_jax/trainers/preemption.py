"""Notices SIGTERM between two training steps, so that the loop can save a checkpoint and exit."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax

_steps = itertools.count(1)  # shared by all stages of this process: JAX needs a step number that only grows


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether to stop now; call it once after every step.

    With several processes, a SIGTERM to any one of them counts, and all processes get True after the same step: JAX's
    coordination service handles the signal and agrees on the step. With one process, SIGTERM is handled here while the
    context is open.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield lambda: multihost_utils.reached_preemption_sync_point(next(_steps))
        return
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield lambda: False
        return
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
