"""Advantages and losses: arithmetic only, no I/O and no jit."""
