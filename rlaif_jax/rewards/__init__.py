"""Rewards: functions from samples (what was asked, what was answered) to one number each, or invalid."""
