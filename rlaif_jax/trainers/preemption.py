"""Told to stop: SIGTERM is noticed between two steps, so that the loop can save and leave."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax

_steps = itertools.count(1)  # over all stages of this process: JAX agrees on a step by a number that only grows


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[], bool]]:
    """told(): whether to stop now; to be called once after every step.

    With several processes a notice to any of them counts, and all get True after the same step (JAX's coordination
    service agrees on it, and it handles the signal). With one process SIGTERM is handled here for as long as the loop runs.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield lambda: multihost_utils.reached_preemption_sync_point(next(_steps))
        return
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda: False
        return
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
