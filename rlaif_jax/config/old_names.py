"""Config fields under the names of earlier versions: accepted in JSON, YAML, run folders and `--set`, each with a note."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Where a field of a run's config moved to. Longer paths come first.
_MOVED = {
    "rl_rules.model_weight": "arms.rl.reward_model",
    "rl_rules": "arms.rl.rules",
    "judge.rules.model_weight": "arms.rl_judge.judge",
    "judge.rules": "arms.rl_judge.rules",
    "rl_judge": "arms.rl_judge.rl",
}


# Section -> old name of a field -> its name now.
_RENAMED = {
    "RlConfig": {
        "group": "group_size", "epochs": "num_epochs", "minibatches": "num_minibatches", "kl_stop": "kl_early_stop",
        "refills": "max_resamples", "max_prompt": "max_prompt_tokens", "max_lost_rewards": "max_invalid_rewards",
    },
    "TrainConfig": {"accumulation": "grad_accumulation", "keep_last": "max_to_keep"},
    "PolicyConfig": {
        "surrogate": "loss", "ratio": "importance_level", "correction": "rollout_correction",
        "correction_low": "rollout_correction_low", "correction_high": "rollout_correction_high",
    },
    "KlConfig": {"coefficient": "coef", "refresh": "ref_sync_steps", "corrected": "unbiased"},
    "ShapingConfig": {"unfinished_penalty": "missing_eos_penalty"},
    "RewardConfig": {"centring": "center_coef"},
    "DpoConfig": {"smoothing": "label_smoothing"},
    "ModelConfig": {"rollout_weights": "rollout_quant"},
    "CurateConfig": {"max_lost": "max_invalid"},
}  # fmt: skip
_VALUES = {("PolicyConfig", "loss"): {"gradient": "reinforce"}}  # old value -> value now


def current_name(kind: type, name: str, say: Callable[[str], None]) -> str:
    """The present name of a section's field."""
    found = _RENAMED.get(kind.__name__, {}).get(name, name)
    if found != name:
        say(f"note: the field {name} of {kind.__name__} is called {found} now")
    return found


def current_value(kind: type, name: str, value: Any) -> Any:
    """The present spelling of a field's value."""
    return _VALUES.get((kind.__name__, name), {}).get(value, value) if isinstance(value, str) else value


def upgraded_path(path: str, say: Callable[[str], None]) -> str:
    """The present name of a dotted field."""
    for old, new in _MOVED.items():
        if path == old or path.startswith(f"{old}."):
            found = new + path[len(old) :]
            say(f"note: the field {path} is called {found} now")
            return found
    return path


def upgraded(kind: type, values: Any, say: Callable[[str], None]) -> Any:
    """Plain values of a run's config in today's form; those of another class as they are."""
    if kind.__name__ != "RunConfig" or not isinstance(values, Mapping):
        return values
    values = dict(values)
    values.pop("version", None)
    return _with_arms(values, say)


def _with_arms(values: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Before there were arms: `rl_rules` were those of the reward model's arm, `judge.rules` and `rl_judge` the judge's."""
    judge = values.get("judge")
    old: list[str] = [name for name in ("rl_rules", "rl_judge") if name in values]
    if isinstance(judge, Mapping) and "rules" in judge:
        old.append("judge.rules")
    if not old or "arms" in values:
        return values
    say(f"note: {', '.join(old)} of an earlier version became arms.rl and arms.rl_judge")
    first: Mapping[str, Any] = values.pop("rl_rules", None) or {}
    second: Mapping[str, Any] = {}
    own = values.pop("rl_judge", None)
    if isinstance(judge, Mapping):
        second = judge.get("rules") or {}
        values["judge"] = {k: v for k, v in judge.items() if k != "rules"}
    arms = {"rl": _arm("reward_model", first)} if values.get("reward", {}) is not None else {}
    if judge is not None:
        arms["rl_judge"] = _arm("judge", second) | ({"rl": own} if own else {})
    return values | {"arms": arms}


def _arm(source: str, rules: Mapping[str, Any]) -> dict[str, Any]:
    weight = rules.get("model_weight", 1.0)
    return {source: weight, "rules": {k: v for k, v in rules.items() if k != "model_weight"}}
