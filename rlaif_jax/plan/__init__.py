"""Predicts what a run needs without running it: estimates memory, or compiles every program for a TPU."""
