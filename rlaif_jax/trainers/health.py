"""Warnings for training that goes wrong, each with settings to try. They change nothing in the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

Metrics = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Symptom:
    """One check: a condition on a log line and the run's first log line, and the warning to print if it holds."""

    name: str
    holds: Callable[[Metrics, Metrics], bool]
    message: str


def _has(*names: str) -> Callable[[Metrics, Metrics], bool]:
    return lambda now, first: all(n in now and n in first for n in names)


# Thresholds are rules of thumb: none of them fired in this project's successful runs.
SYMPTOMS = (
    Symptom("KL explosion", lambda now, first: now.get("kl", 0.0) > 1.0,
            "the policy's KL from its reference is {kl:.2f} nats per token. Try a larger rl.kl.coef, a smaller learning "
            "rate, or rl.kl.target"),
    Symptom("entropy collapse", lambda now, first: _has("entropy")(now, first) and now["entropy"] < 0.25 * first["entropy"],
            "entropy fell to {entropy:.3f} nats, less than a quarter of its start: the answers become alike. Try a larger "
            "rl.kl.coef, rl.policy.clip_high or rl.policy.entropy_coefficient, or fewer steps"),
    Symptom("length drift",
            lambda now, first: _has("length_tokens")(now, first)
            and not 0.5 < now["length_tokens"] / max(first["length_tokens"], 1e-6) < 1.6,
            "responses have {length_tokens:.1f} tokens on average, far from their first value: the reward may depend on length. "
            "Try a length band in the rules, or length-matched pairs for the reward model"),
    Symptom("rewards saturated", lambda now, first: now.get("frac_reward_zero_std", 0.0) > 0.8,
            "{frac_reward_zero_std:.0%} of the groups have equal rewards and give no gradient. Try a continuous reward, a "
            "larger rl.group_size, rl.max_resamples, or harder prompts"),
    Symptom("answers do not end", lambda now, first: now.get("finished", 1.0) < 0.5,
            "only {finished:.0%} of the responses end within the limit. Try a larger rl.sampling.max_tokens or "
            "rl.shaping.missing_eos_penalty"),
    Symptom("large updates", lambda now, first: now.get("clip_ratio/low", 0.0) + now.get("clip_ratio/high", 0.0) > 0.4,
            "more than 40 % of the tokens hit the clip. Try a smaller learning rate, fewer rl.num_epochs, or rl.kl_early_stop"),
    Symptom("sampler and trainer differ", lambda now, first: now.get("rollout_mismatch", 0.0) > 0.05,
            "with the same weights, their log-probs differ by {rollout_mismatch:.3f} nats per token. Try "
            "rl.policy.rollout_correction, or the same precision for both"),
    Symptom("critic worse than nothing",
            lambda now, first: now.get("explained_variance", 1.0) < -0.5 and now.get("step", 0) > 20,
            "the critic predicts worse than a constant (explained variance {explained_variance:.2f}). Try rl.critic.warmup or a "
            "larger rl.critic.optimizer.learning_rate"),
    Symptom("steps skipped", lambda now, first: now.get("skipped", 0.0) > 0,
            "{skipped:.0f} updates were skipped, since their loss or gradient was not finite, or their batch had no valid row. "
            "Try a smaller learning rate"),
)  # fmt: skip


class Health:
    """Prints a warning when a symptom appears, and again only if it disappeared in between."""

    def __init__(self, say: Callable[[str], None], first: Metrics | None = None):
        """`first`: the run's first log line, if the run was resumed from a checkpoint."""
        self._say, self._first, self._present = say, first, set()

    def look(self, step: int, means: Metrics) -> None:
        """Checks the metrics of one log line."""
        now = {k: v for k, v in means.items() if v is not None and math.isfinite(v)} | {"step": step}
        self._first = self._first or now
        for symptom in SYMPTOMS:
            if not symptom.holds(now, self._first):
                self._present.discard(symptom.name)
            elif symptom.name not in self._present:
                self._present.add(symptom.name)
                self._say(f"step {step}: {symptom.name}: {symptom.message.format(**now)}.")
