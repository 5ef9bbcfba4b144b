"""Sampling from the policy: token filters, and the jitted loop of prefill and decode."""
