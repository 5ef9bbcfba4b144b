"""Rewards by rule, and how several rewards become one. Rules read the request's words; they know no gold scorer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.rewards.base import RewardFn, RewardResult, Sample

_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2}
_NUMBER = r"([0-9]{1,3}|[一二两三四五六七八九十]{1,3})"
_AT_MOST = re.compile(rf"(?:不超过|最多|至多){_NUMBER}个?字|{_NUMBER}个?字(?:以内|之内)")
_EXACTLY = re.compile(rf"(?<!每句)(?<![一二两三四五六七八九十0-9]){_NUMBER}个字(?!以内|之内|一句)|正好{_NUMBER}字")
_LINES = re.compile(rf"每句{_NUMBER}个?字|{_NUMBER}个?字一句")
_ITEMS = re.compile(rf"{_NUMBER}[条句段则](?![话])")
_START = re.compile(r"[以用]“([^”]+)”字?开头")
_AVOID = re.compile(r"(?:别出现|不要用|不许用|不要出现)“([^”]+)”")
_MARKS = re.compile(r"[^\w]|_", re.UNICODE)
_ITEM_MARK = re.compile(r"(?:^|\s|[。！？；])[（(]?[0-9一二三四五六七八九十]{1,2}[)）.、．]")


@dataclasses.dataclass(frozen=True)
class RuleConfig:
    """Weights of the rewards by rule, each in [0, 1] before its weight; 0 = off.

    Attributes:
      model_weight: weight of the model's reward (judge or reward model).
      constraint_weight: 1 where the answer keeps the explicit constraints that the request states, else 0.
      repetition_weight: 1 minus the share of 4-grams that occur again.
      length_weight: 1 inside `length_min`..`length_max` characters, falling to 0 at half and at twice that.
      veto_constraint, veto_repetition: such a violation takes `veto_penalty` off the whole reward.
      normalise: "none", or "batch": each part is centred and scaled by its own standard deviation over the batch.
    """

    model_weight: float = 1.0
    constraint_weight: float = 0.0
    repetition_weight: float = 0.0
    length_weight: float = 0.0
    length_min: int = 10
    length_max: int = 60
    veto_constraint: bool = False
    veto_repetition: bool = False
    veto_penalty: float = 1.0
    normalise: str = "none"

    def __post_init__(self):
        if self.normalise not in ("none", "batch"):
            raise UserError(f"rules.normalise is {self.normalise!r}; expected none or batch")
        if not 0 < self.length_min <= self.length_max:
            raise UserError(f"rules.length_min {self.length_min} and length_max {self.length_max} form no band")


def number(text: str) -> int:
    """A number up to 99 in digits or Chinese numerals: "16", "十六", "两"."""
    if text.isdigit():
        return int(text)
    tens, ten, ones = text.rpartition("十")
    if not ten:
        return _DIGITS[text]
    return 10 * (_DIGITS[tens] if tens else 1) + (_DIGITS[ones] if ones else 0)


def count_characters(text: str) -> int:
    """Characters without punctuation, space and item numbers."""
    return len(_MARKS.sub("", _ITEM_MARK.sub("", text)))


def keeps_constraints(request: str, response: str) -> float | None:
    """Whether the answer keeps what the request states in so many words (length, number of items, first word, words
    to avoid): 1.0 or 0.0; None where the request states nothing of the kind."""
    checks = []
    length, body = count_characters(response), response.strip()
    if found := _AT_MOST.search(request):
        checks.append(length <= _found(found))
    elif found := _EXACTLY.search(request):
        checks.append(length == _found(found))
    if found := _LINES.search(request):
        lines = [line for line in re.split(r"[，。！？；、,.!?;\s]+", body) if line]
        checks.append(all(len(line) == _found(found) for line in lines))
    if (found := _ITEMS.search(request)) and (wanted := _found(found)) > 1:
        checks.append(len(_ITEM_MARK.findall(body)) == wanted)
    if found := _START.search(request):
        checks.append(body.startswith(found.group(1)))
    if found := _AVOID.search(request):
        checks.append(found.group(1) not in body)
    return float(all(checks)) if checks else None


def _found(match: re.Match) -> int:
    return number(next(g for g in match.groups() if g))


def distinct_share(response: str, n: int = 4) -> float:
    """1 minus the share of character n-grams that occur again."""
    text = _MARKS.sub("", response)
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def length_band(response: str, low: int, high: int) -> float:
    """1 inside the band of characters, falling linearly to 0 at low / 2 and 2 * high."""
    length = count_characters(response)
    if length < low:
        return max(0.0, (length - low / 2) / (low / 2))
    return max(0.0, 1.0 - max(0, length - high) / high)


def _per_answer(score: Callable[[Sample], float]) -> RewardFn:
    def reward(samples: Sequence[Sample]) -> RewardResult:
        return RewardResult(np.array([score(e) for e in samples], np.float32), np.ones(len(samples), bool))

    return reward


def with_rules(model: RewardFn, cfg: RuleConfig) -> RewardFn:
    """The model's reward and the rules as one weighted sum, each part logged under its name."""
    parts: dict[str, tuple[RewardFn, float]] = {"model": (model, cfg.model_weight)}
    kept = _per_answer(lambda e: 1.0 if (k := keeps_constraints(e.prompt, e.response)) is None else k)
    fresh = _per_answer(lambda e: distinct_share(e.response))
    band = _per_answer(lambda e: length_band(e.response, cfg.length_min, cfg.length_max))
    for name, rule, weight in (
        ("constraint", kept, cfg.constraint_weight), ("repetition", fresh, cfg.repetition_weight),
        ("length", band, cfg.length_weight),
    ):  # fmt: skip
        if weight:
            parts[name] = (rule, weight)
    vetoes = {}
    if cfg.veto_constraint:
        vetoes["constraint"] = kept
    if cfg.veto_repetition:
        vetoes["repetition"] = _per_answer(lambda e: float(distinct_share(e.response) >= 0.8))
    if len(parts) == 1 and not vetoes and cfg.normalise == "none" and cfg.model_weight == 1.0:
        return model
    return combine(parts, vetoes, cfg.veto_penalty, cfg.normalise)


def combine(
    parts: Mapping[str, tuple[RewardFn, float]], vetoes: Mapping[str, RewardFn], penalty: float, normalise: str
) -> RewardFn:
    """The weighted sum of the parts, less `penalty` for every veto whose value is below 0.5.

    A row is valid where every part and veto is: a part without verdict must not pass as a zero.
    """

    def reward(samples: Sequence[Sample]) -> RewardResult:
        total = np.zeros(len(samples), np.float32)
        valid = np.ones(len(samples), bool)
        components: dict[str, np.ndarray] = {}
        for name, (fn, weight) in parts.items():
            result = fn(samples)
            valid &= result.valid
            components[name] = np.where(result.valid, result.values, 0.0)
            total += weight * (_standardised(result) if normalise == "batch" else components[name])
        for name, fn in vetoes.items():
            result = fn(samples)
            valid &= result.valid
            components[f"veto_{name}"] = (result.values < 0.5).astype(np.float32)
            total -= penalty * components[f"veto_{name}"]
        return RewardResult(total, valid, components)

    return reward


def _standardised(result: RewardResult) -> np.ndarray:
    values = result.values[result.valid]
    if not len(values):
        return np.zeros_like(result.values)
    return np.where(result.valid, (result.values - values.mean()) / (values.std() + 1e-6), 0.0).astype(np.float32)
