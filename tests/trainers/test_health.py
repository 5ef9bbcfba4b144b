"""Warnings: each symptom is said when it appears, not before and not again while it lasts."""

import pytest

from rlaif_jax.trainers.health import SYMPTOMS, Health

WELL = {"kl": 0.05, "entropy": 2.0, "length_tokens": 20.0, "frac_reward_zero_std": 0.2, "finished": 0.97, "clip_ratio/low": 0.02,
        "clip_ratio/high": 0.03, "rollout_mismatch": 1e-6, "explained_variance": 0.4, "skipped": 0.0}  # fmt: skip
SICK = {
    "KL explosion": {"kl": 3.0}, "entropy collapse": {"entropy": 0.1}, "length drift": {"length_tokens": 45.0},
    "rewards saturated": {"frac_reward_zero_std": 0.9}, "answers do not end": {"finished": 0.2},
    "large updates": {"clip_ratio/low": 0.3, "clip_ratio/high": 0.2}, "sampler and trainer differ": {"rollout_mismatch": 0.3},
    "critic worse than nothing": {"explained_variance": -2.0}, "steps skipped": {"skipped": 2.0},
}  # fmt: skip


def test_every_symptom_has_a_case():
    assert {s.name for s in SYMPTOMS} == set(SICK)


@pytest.mark.parametrize("name", SICK)
def test_a_symptom_is_said_once_and_again_when_it_comes_back(name):
    said = []
    health = Health(said.append)
    for step, metrics in enumerate((WELL, WELL, WELL | SICK[name], WELL | SICK[name], WELL, WELL | SICK[name]), 50):
        health.look(step, metrics)
    assert len(said) == 2 and all(f": {name}: " in text and "Try" in text for text in said)
    assert said[0].startswith("step 52:")


def test_what_a_run_does_not_measure_raises_nothing():
    said = []
    health = Health(said.append)
    health.look(1, {"loss": 1.0, "entropy": float("nan"), "ratio_max": float("-inf"), "skipped": None})
    health.look(2, {"loss": 1.0})
    assert said == []


def test_a_resumed_run_remembers_how_it_began():
    said = []
    Health(said.append, {"length_tokens": 20.0}).look(60, WELL | {"length_tokens": 50.0})
    assert len(said) == 1 and "50.0 tokens" in said[0]
