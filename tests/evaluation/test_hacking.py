"""Each check fails for the trick that it looks for, and passes for an honest gain; an arm is checked against its own signal."""

import itertools
import random

import pytest

from rlaif_jax.evaluation.compare import GradedSample, System
from rlaif_jax.evaluation.hacking import NO_AUDIT, Candidate, failed, hack_flags
from rlaif_jax.evaluation.headline import headline
from rlaif_jax.evaluation.scores import rate_figure

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
JUDGE_ARM = Candidate("rl_judge", "sft", ("judge",))
LINES = ["，".join(four) for four in itertools.permutations(CLAUSES, 4)]


def answers(name, edit=lambda text: text, excellent=0.4, reward=0.0, finished=True, n=120):
    """Random clauses; the same texts for every system before `edit`."""
    rng, noise = random.Random(0), random.Random(name)
    samples = []
    for i in range(n):
        text = edit("，".join(rng.sample(CLAUSES, 4)))
        scores = {"excellent": float(noise.random() < excellent), "reward": noise.gauss(reward, 1)}
        samples.append(GradedSample(f"请求{i}", text, len(text), finished, scores))
    return System(name, "", tuple(samples))


def drawn(name, seed, *, judge, gold=None, reward=None, n=100, own="judge_p"):
    """Varied answers with scores from seeded distributions: the own signal, gold's verdicts and the reward model's score."""
    rng, rows = random.Random(f"{name}/{seed}"), []
    for i in range(n):
        scores = {own: min(max(rng.gauss(judge, 0.25), 0.0), 1.0)}
        scores |= {"judge": float(scores[own] > 0.5)} if own == "judge_p" else {}
        scores |= {} if gold is None else {"excellent": float(rng.random() < gold)}
        scores |= {} if reward is None else {"reward": rng.gauss(reward, 1)}
        rows.append(GradedSample(f"请求{i}", rng.choice(LINES), 20, True, scores))
    return System(name, "", tuple(rows))


def flags(**changes):
    found = hack_flags(answers("sft"), answers("rl", **changes))
    return {flag.name: flag.ok for flag in found}


def test_an_honest_gain_passes_all():
    assert all(flags(excellent=0.8, reward=1.5).values())


def test_longer_answers_fail_length():
    found = flags(edit=lambda t: t + "，" + "祝你们一切都好呀", excellent=0.8, reward=1.5)
    assert found["length"] is False and found["duplicates"] is True


def test_reward_whose_quality_falls_fails():
    found = flags(excellent=0.2, reward=1.5)
    assert found["reward model's score against rate of flawless answers"] is False and found["length"] is True


def test_one_stock_line_fails_diversity_and_duplicates():
    found = flags(edit=lambda t: "岁岁平安，灯火可亲，前程似锦，步步高升", excellent=0.8, reward=1.5)
    assert found["diversity"] is False and found["duplicates"] is False


def test_repetition_and_unfinished():
    found = flags(edit=lambda t: t[:9] + t[:9], finished=False, excellent=0.8, reward=1.5)
    assert found["repetition"] is False and found["unfinished"] is False


def test_what_cannot_be_checked_says_so():
    plain = System("sft", "", (GradedSample("请求", "好", 1, True), GradedSample("请求2", "福", 1, True)))
    found = {f.name: f for f in hack_flags(plain, System("rl", "", plain.samples))}
    assert found["own signal"].ok is None and found["own signal"].result == "not checked"
    assert found["diversity"].ok is None


def test_an_arm_is_checked_against_the_score_that_it_maximises():
    """The judge is gamed: its verdicts rise from 20 to 90 %, gold falls from 15 to 1 %, the reward model's score stays."""
    before = drawn("sft", 0, judge=0.35, gold=0.15, reward=0.0)
    after = drawn("rl_judge", 0, judge=0.85, gold=0.01, reward=0.0)
    found = {f.name: f.ok for f in hack_flags(before, after, JUDGE_ARM)}
    assert found["judge's P(good) against rate of flawless answers"] is False
    assert not any(name.startswith("reward model's score against") for name in found), "that is the other arm's signal"


def test_without_gold_the_other_arms_score_is_the_audit():
    before, after = drawn("sft", 1, judge=0.35, reward=0.0), drawn("rl_judge", 1, judge=0.85, reward=-0.5)
    assert failed(hack_flags(before, after, JUDGE_ARM)) == ["judge's P(good) against reward model's score"]


def test_a_function_arm_gets_checks_too():
    arm = Candidate("own", "sft", ("long_enough",))
    before = drawn("sft", 2, judge=0.3, gold=0.4, own="long_enough")
    after = drawn("own", 2, judge=0.9, gold=0.2, own="long_enough")
    assert failed(hack_flags(before, after, arm)) == ["long_enough against rate of flawless answers"]


def test_an_arm_without_an_independent_score_is_not_checked_and_is_told_what_to_set():
    before, after = drawn("sft", 3, judge=0.3), drawn("rl_judge", 3, judge=0.9)
    flag = hack_flags(before, after, JUDGE_ARM)[0]
    assert (flag.ok, flag.detail) == (None, NO_AUDIT) and "set grader, evaluation.win_rates" in flag.detail


def test_a_grader_that_learned_from_the_arms_data_is_no_evidence():
    rows = [(0.3, 0.0), (0.9, 1.0)]
    a, b = (
        System(n, "", tuple(GradedSample(f"请求{i}", LINES[i], 9, True, {"judge_p": p, "grader": g}) for i in range(40)))
        for n, (p, g) in zip(("sft", "rl_judge"), rows, strict=True)
    )  # fmt: skip
    assert hack_flags(a, b, Candidate("rl_judge", "sft", ("judge",), ("grader",)))[0].detail == NO_AUDIT


def test_few_answers_are_undecided_and_no_failure():
    before, after = drawn("sft", 4, judge=0.35, gold=0.3, n=16), drawn("rl_judge", 4, judge=0.8, gold=0.45, n=16)
    flag = next(f for f in hack_flags(before, after, JUDGE_ARM) if "flawless" in f.name)
    assert flag.result == "undecided" and "too few answers to tell" in flag.detail and "standard deviations" in flag.detail


def test_a_score_without_headroom_need_not_rise():
    before, after = drawn("sft", 5, judge=0.35, gold=1.0), drawn("rl_judge", 5, judge=0.85, gold=1.0)
    flag = next(f for f in hack_flags(before, after, JUDGE_ARM) if "flawless" in f.name)
    assert flag.result == "undecided" and "no room to rise" in flag.detail


@pytest.mark.parametrize(("good", "ok"), [(20, False), (75, True)])
def test_a_win_rate_is_an_audit(good, ok):
    wins = {"judge, asked in both orders": rate_figure([1.0] * good + [0.0] * (100 - good))}
    before = drawn("sft", 6, judge=0.3, own="reward")
    after = drawn("rl", 6, judge=0.9, own="reward")
    flag = hack_flags(before, after, Candidate("rl", "sft", ("reward",), wins=wins))[0]
    assert flag.ok is ok and "win rate" in flag.name


GAMED = {"gold": {"judge": 0.8, "gold": 0.12, "reward": 0.0}, "audit": {"judge": 0.8, "gold": None, "reward": -0.4}}


@pytest.mark.parametrize("kind", GAMED)
def test_twenty_gamed_runs_are_flagged(kind):
    """Reward up, gold or audit score down: at least 19 of 20 are flagged, in the checks and in the headline."""
    flagged = 0
    for seed in range(20):
        before = drawn("sft", seed, judge=0.35, gold=0.3 if kind == "gold" else None, reward=0.0)
        after = drawn("rl_judge", seed, **GAMED[kind])
        found = hack_flags(before, after, JUDGE_ARM)
        sentence = headline((before, after), (JUDGE_ARM,), {"rl_judge": found})
        flagged += bool(failed(found)) and "checks for reward hacking fail" in sentence
    assert flagged >= 19


def test_twenty_honest_runs_are_not():
    """Reward, gold and audit score rise together: at most one of 20 is flagged."""
    flagged = 0
    for seed in range(20):
        before = drawn("sft", seed, judge=0.35, gold=0.3, reward=0.0)
        flagged += bool(failed(hack_flags(before, drawn("rl_judge", seed, judge=0.8, gold=0.5, reward=0.5), JUDGE_ARM)))
    assert flagged <= 1
