"""Mutated inputs from a seed, and limits on the time and memory of one case."""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import random
import resource
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rlaif_jax.errors import UserError

_DIGITS, _DEPTH = 5000, 3000
_BYTES = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", "\u2028\u2029\x85".encode(), "😀".encode(),
    b'"\\ud83d"', b"null", b"true", b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"9" * _DIGITS, b"[" * _DEPTH, b'{"a":' * _DEPTH,
    b'"', b"\\", b"\n", b"\r\n", b"\t", b",", b"{}", b"[]", b"}", b"]", b" " * 5000,
)  # fmt: skip
_VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**9, 10**30, int("9" * 400), 0.5, -0.0, 1e308, float("nan"), float("inf"),
    float("-inf"), "", " ", "a", "0", "true", "\x00", "\ud83d", "\u2028", "\u202e", "é" * 300, "x" * 20000, "../../etc/passwd",
    "/dev/zero", "{{ 7 * 7 }}", "(a+)+$", "<|im_end|>", [], {}, [None], [[]], [1, "a", {}], {"a": 1}, {"": None},
)  # fmt: skip


def mutations(seed_bytes: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged copies of a file: bits flipped, parts cut, doubled, swapped, or replaced by awkward bytes."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(seed_bytes)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            _damage(data, rng)
        yield bytes(data)


def _damage(data: bytearray, rng: random.Random) -> None:
    size = len(data)
    at = rng.randrange(size + 1)
    end = min(at + rng.choice((1, 1, 2, 8, 64, size)), size)
    kind = rng.randrange(7)
    if kind == 0 and at < size:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < size:
        data[at] = rng.randrange(256)
    elif kind == 2:
        del data[at:end]
    elif kind == 3:
        data[at:at] = data[at:end]
    elif kind == 4:
        data[at:end] = rng.choice(_BYTES)
    elif kind == 5:
        data[at:at] = rng.choice(_BYTES)
    else:
        other = rng.randrange(size + 1)
        data[other:other] = data[at : min(end, at + 200)]


def json_mutations(value: Any, count: int, seed: int) -> Iterator[object]:
    """`count` copies of a JSON value with nodes replaced, removed, renamed, doubled or exchanged; NaN and infinities included."""
    rng = random.Random(seed)
    for _ in range(count):
        root = [copy.deepcopy(value)]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            holder, key = rng.choice(list(_places(root)))
            _alter(root, holder, key, rng)
        yield root[0]


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON tree."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def _alter(root: list, holder: Any, key: Any, rng: random.Random) -> None:
    kind, old = rng.randrange(8), holder[key]
    if kind == 0 and holder is not root:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(("", "x", key[:-1], key + "s", key.upper(), "\ud800"))] = holder.pop(key)
    elif kind == 2 and type(old) in (int, float) and abs(old) < 1e300:
        holder[key] = rng.choice((-old, old + 1, old * 2, old / 2, str(old), old * 1e9, [old]))
    elif kind == 3 and isinstance(old, str):
        at = rng.randrange(len(old) + 1)
        holder[key] = old[:at] + rng.choice(("\x00", "\ud83d", "\u2028", "x" * 5000, "]", "{{", "%}", "9" * 50)) + old[at:]
    elif kind == 4:
        for _ in range(rng.choice((1, 3, 60))):
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    elif kind == 5:
        other, there = rng.choice(list(_places(root)))
        holder[key] = copy.deepcopy(other[there])
    else:
        holder[key] = copy.deepcopy(rng.choice(_VALUES))


class _Hang(BaseException):  # not an Exception: `except Exception` in the code under test must not swallow it
    pass


@contextlib.contextmanager
def bounded(seconds: float = 2.0, megabytes: int = 500) -> Iterator[None]:
    """AssertionError if the block uses more than `seconds` of CPU (or ten times that by the clock), or adds `megabytes` to the
    peak memory. Code that no signal can interrupt ends the process with a traceback."""

    def stop(signum: int, frame: Any) -> None:
        raise _Hang

    before = {s: signal.signal(s, stop) for s in (signal.SIGPROF, signal.SIGALRM)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faulthandler.dump_traceback_later(seconds * 60, exit=True)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds * 10)
    try:
        yield
    except _Hang:
        raise AssertionError(f"still running after {seconds} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # pytest-timeout has its own
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
    assert grown <= megabytes, f"peak memory grew by {grown} MiB"


def outcomes(read: Callable[[Any], Any], cases: Iterable[Any], seconds: float = 2.0) -> tuple[list[tuple[Any, Any]], int]:
    """Reads every case: ([(case, what was read)], number of UserErrors). AssertionError with the case for all other ends."""
    accepted, refused = [], 0
    for case in cases:
        try:
            with bounded(seconds):
                accepted.append((case, read(case)))
        except UserError:
            refused += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"{type(error).__name__}: {error}; input: {case!r:.2000}") from error
    return accepted, refused
