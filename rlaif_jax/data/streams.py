"""Seeds by name: each use of randomness in a run gets its own seed, derived from the run's seed."""

from __future__ import annotations

import zlib


def stream(seed: int, name: str) -> int:
    """A seed in [0, 2^31) for one use, such as "sft/rows" or "rollout". Seeds differ unless CRC-32 collides."""
    return zlib.crc32(f"{seed}/{name}".encode()) & 0x7FFFFFFF
