"""Sampling from the policy: filters, the jitted prefill and decode loop, and rollouts."""
