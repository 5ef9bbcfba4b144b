"""Plain warnings when an RL run looks sick, each with what to try. They only speak; nothing is changed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

Metrics = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Symptom:
    """One check of a log line against the run's first one: when it holds, and what to say and try."""

    name: str
    holds: Callable[[Metrics, Metrics], bool]
    message: str


def _has(*names: str) -> Callable[[Metrics, Metrics], bool]:
    return lambda now, first: all(n in now and n in first for n in names)


# The bounds are rules of thumb, wide enough to stay silent in the runs of this project that went well.
SYMPTOMS = (
    Symptom("KL explosion", lambda now, first: now.get("kl", 0.0) > 1.0,
            "the policy is {kl:.2f} nats per token away from its reference. Try a larger kl.coef, a smaller learning "
            "rate, or kl.target"),
    Symptom("entropy collapse", lambda now, first: _has("entropy")(now, first) and now["entropy"] < 0.25 * first["entropy"],
            "entropy fell to {entropy:.3f} nats, less than a quarter of its start: answers become alike. Try a larger "
            "kl.coef or policy.clip_high, an entropy_coefficient, or fewer steps"),
    Symptom("length drift",
            lambda now, first: _has("length_tokens")(now, first)
            and not 0.5 < now["length_tokens"] / max(first["length_tokens"], 1e-6) < 1.6,
            "responses have {length_tokens:.1f} tokens on average, far from their start: the reward may favour a length. "
            "Try a length band in the rules, or length-matched pairs for the reward model"),
    Symptom("rewards saturated", lambda now, first: now.get("no_signal_groups", 0.0) > 0.8,
            "{no_signal_groups:.0%} of the groups have equal rewards and teach nothing. Try a soft reward, a larger group, "
            "rl.max_resamples, or harder prompts"),
    Symptom("answers do not end", lambda now, first: now.get("finished", 1.0) < 0.5,
            "only {finished:.0%} of the responses end within the limit. Try a larger sampling.max_tokens or "
            "shaping.missing_eos_penalty"),
    Symptom("large updates", lambda now, first: now.get("clip_low", 0.0) + now.get("clip_high", 0.0) > 0.4,
            "more than 40 % of the tokens hit the clip. Try a smaller learning rate, fewer epochs, or kl_early_stop"),
    Symptom("sampler and trainer differ", lambda now, first: now.get("sampler_gap", 0.0) > 0.05,
            "their log-probs differ by {sampler_gap:.3f} nats per token at the same weights. Try policy.rollout_correction, or the "
            "same precision for both"),
    Symptom("critic worse than nothing",
            lambda now, first: now.get("explained_variance", 1.0) < -0.5 and now.get("step", 0) > 20,
            "the critic explains less than a constant would ({explained_variance:.2f}). Try critic.warmup or a larger "
            "critic.optimizer.learning_rate"),
    Symptom("steps skipped", lambda now, first: now.get("skipped", 0.0) > 0,
            "{skipped:.0f} updates had a loss or gradient that is not finite and were skipped. Try a smaller learning rate"),
)  # fmt: skip


class Health:
    """Says each symptom once when it appears, and again only after it had gone."""

    def __init__(self, say: Callable[[str], None], first: Metrics | None = None):
        """`first`: the run's first log line, where it goes on from a checkpoint."""
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
