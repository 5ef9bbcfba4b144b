"""Rewards: functions from exchanges (what was asked, what was answered) to one number each, or no verdict."""
