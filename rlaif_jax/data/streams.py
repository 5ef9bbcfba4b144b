"""Seeds by name: every use of randomness in a run has a stream of its own, derived from the run's seed."""

from __future__ import annotations

import zlib


def stream(seed: int, name: str) -> int:
    """A seed in [0, 2^31) for one use ("sft/rows", "rollout"); two names, or two seeds, share none but by a collision of CRC-32."""
    return zlib.crc32(f"{seed}/{name}".encode()) & 0x7FFFFFFF
