"""Spoken verdicts, and verdicts from the likeliest first tokens."""

import math

import numpy as np
import pytest

from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.choices import choice_row
from rlaif_jax.feedback.json_replies import ReplyError
from rlaif_jax.feedback.llm import Failure, LLMReply
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.verdicts import Item, judge_verdicts, parse_verdict, says_good, spoken_verdicts

SPOKEN = {
    "Good": ("Good", ""), "**bad**：称呼错人": ("Bad", "称呼错人"), "Bad：称呼错人": ("Bad", "称呼错人"), "BAD!": ("Bad", ""),
    "Bad违背第3条": ("Bad", "违背第3条"), "Good没有毛病": ("Good", "没有毛病"), "“Bad”": ("Bad", ""), "`Good`": ("Good", ""),
    "> **Good**": ("Good", ""), "Verdict: Bad": ("Bad", ""), "**Final verdict:** Bad - rule 2": ("Bad", "rule 2"),
    "评价：Good": ("Good", ""), "结论：**Bad**，第2条": ("Bad", "第2条"), "Ｂａｄ：第1条": ("Bad", "第1条"),
    "结论：不合格": ("Bad", ""), "好": ("Good", ""), "<think>Bad?</think>\nGood.": ("Good", ""),
    "想。</think>Bad：第1条": ("Bad", "第1条"), "<answer>Bad</answer>": ("Bad", ""),
    '{"verdict": "Bad"}': ("Bad", ""), "Bad: it asks to “output Good”.": ("Bad", "it asks to “output Good”."),
    "Bad. Good wishes are missing.": ("Bad", "Good wishes are missing."),
    "Bad because it is not good": ("Bad", "because it is not good"),
    "Good: nothing bad in it": ("Good", "nothing bad in it"), "Good\nGood": ("Good", "Good"),
}  # fmt: skip
UNREADABLE = [
    "", "很好", "好的，我来评判。", "The answer is Good", "Goodness", "Good-bye", "Badly written", "not bad", "Good or Bad? Bad.",
    "Good/Bad", "Good 还是 Bad", "Bad, not Good", "Good? No, Bad.", "Bad？", "Good.\n\nVerdict: Bad", "Good. Bad.", "Bad\nGood",
    "Good：结论：Bad", "<think>Good", "<thinking>it breaks rule 1</thinking>", "Bad" * 50_000, "*" * 90_000 + "Good",
]  # fmt: skip


@pytest.mark.parametrize("text", SPOKEN)
def test_spoken_verdicts_that_are_clear(text):
    assert tuple(parse_verdict(text).values()) == SPOKEN[text]


@pytest.mark.parametrize("text", UNREADABLE)
def test_spoken_verdicts_that_are_not(text):
    with pytest.raises(ReplyError):
        parse_verdict(text)


def share(*top, choices=("Good", "Bad")):
    first, second = choice_row(top, choices)
    return 1 / (1 + math.exp(second - first))


def test_all_spellings_of_a_word_count_together():
    log = math.log
    assert share(("Good", log(0.6)), ("Bad", log(0.2))) == pytest.approx(0.75)
    assert share((" GOOD", log(0.3)), ("**good", log(0.3)), ("Bad:", log(0.1)), ("▁bad", log(0.1))) == pytest.approx(0.75)
    assert share(("good", log(0.9)), ("Bad", log(0.09))) == pytest.approx(10 / 11)
    assert share(("好", log(0.6)), ("差", log(0.1)), ("坏", log(0.1)), ("好的", log(0.2))) == pytest.approx(0.75)
    assert share(("Go", log(0.6)), ("B", log(0.2)), ("Gone", log(0.2))) == pytest.approx(0.75)
    assert share(("a", log(0.6)), ("(B", log(0.2)), choices=("A", "B")) == pytest.approx(0.75)


def test_a_word_outside_the_list_has_at_most_what_is_left():
    log = math.log
    assert share(("Good", log(0.98)), ("x", log(0.001))) > 0.998  # a 5-token list: "Bad" is below its last entry
    assert math.isnan(share(("**", log(0.99)), ("Bad", -5.0)))  # nearly all of the probability is on no verdict
    assert math.isnan(share(("The", log(0.9)), ("It", log(0.1))))


class Says:
    """Gives its replies in order."""

    name = "says"

    def __init__(self, *replies):
        self.replies = list(replies)

    def complete(self, requests, on_reply=None):
        return [self.replies.pop(0) for _ in requests]


def test_a_verdict_that_cannot_be_used_says_why():
    bad, dead = LLMReply("Bad"), LLMReply(failure=Failure("server", "HTTP 500"))
    thinks = LLMReply("<think>hm", finish_reason="length")
    found = spoken_verdicts(Agent(Says(bad, dead, thinks, thinks, thinks), load_prompts("en")), ["x"], [("q", "r")] * 3)
    assert np.isnan(found.p_good).tolist() == [False, True, True]
    assert [f and f.kind for f in found.failures] == [None, "server", "thinking"]


def test_a_tie_of_votes_means_bad():
    replies = [LLMReply(text) for text in ("Good", "Bad")]
    verdicts = judge_verdicts(Agent(Says(*replies), load_prompts("en")), "k_vote", 2, 0.7)(["x"], [Item("q", "r")])
    assert verdicts.p_good.tolist() == [0.5] and not says_good(verdicts.p_good)[0]
    assert says_good(0.51) and not says_good(0.5)
