"""Each check fails for the trick that it looks for, and passes for an honest gain."""

import random

from rlaif_jax.evaluation.compare import GradedSample, System
from rlaif_jax.evaluation.hacking import hack_flags

CLAUSES = [
    "岁岁平安",
    "灯火可亲",
    "前程似锦",
    "步步高升",
    "笑口常开",
    "阖家幸福",
    "万事如意",
    "桃李满园",
    "月圆人圆",
    "心想事成",
]


def answers(name, edit=lambda text: text, excellent=0.4, reward=0.0, finished=True, n=120):
    """Random clauses; the same texts for every system before `edit`."""
    rng, noise = random.Random(0), random.Random(name)
    samples = []
    for i in range(n):
        text = edit("，".join(rng.sample(CLAUSES, 4)))
        scores = {"excellent": float(noise.random() < excellent), "reward": noise.gauss(reward, 1)}
        samples.append(GradedSample(f"请求{i}", text, len(text), finished, scores))
    return System(name, "", tuple(samples))


def flags(**changes):
    found = hack_flags(answers("sft"), answers("rl", **changes))
    return {flag.name: flag.ok for flag in found}


def test_an_honest_gain_passes_all():
    assert all(flags(excellent=0.8, reward=1.5).values())


def test_longer_answers_fail_length():
    found = flags(edit=lambda t: t + "，" + "祝你们一切都好呀", excellent=0.8, reward=1.5)
    assert found["length"] is False and found["duplicates"] is True


def test_reward_without_quality_fails():
    found = flags(excellent=0.4, reward=1.5)
    assert found["reward against rate of flawless answers"] is False and found["length"] is True


def test_one_stock_line_fails_diversity_and_duplicates():
    found = flags(edit=lambda t: "岁岁平安，灯火可亲，前程似锦，步步高升", excellent=0.8, reward=1.5)
    assert found["diversity"] is False and found["duplicates"] is False


def test_repetition_and_unfinished():
    found = flags(edit=lambda t: t[:9] + t[:9], finished=False, excellent=0.8, reward=1.5)
    assert found["repetition"] is False and found["unfinished"] is False


def test_what_cannot_be_checked_says_so():
    plain = System("sft", "", (GradedSample("请求", "好", 1, True), GradedSample("请求2", "福", 1, True)))
    found = {f.name: f.ok for f in hack_flags(plain, System("rl", "", plain.samples))}
    assert found["reward"] is None and found["diversity"] is None
