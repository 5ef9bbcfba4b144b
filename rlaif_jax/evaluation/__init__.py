"""Compares systems on held-out prompts: figures with intervals, checks for reward hacking, and a report."""
