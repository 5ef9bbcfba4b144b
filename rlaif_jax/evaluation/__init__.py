"""Honest comparison of systems on held-out prompts: figures with intervals, hacking checks, a report to look at."""
