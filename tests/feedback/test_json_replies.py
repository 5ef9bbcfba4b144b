"""What a model says when it should say JSON."""

import pytest

from rlaif_jax.feedback.json_replies import ReplyError, ask, parse_json
from rlaif_jax.feedback.llm import Failure, LLMReply, LLMRequest, Message
from rlaif_jax.feedback.verdicts import parse_verdict

SCHEMA = {"verdict": (0, 1), "reason": str}
READ = {"verdict": 1, "reason": "有画面"}


@pytest.mark.parametrize(
    "text",
    [
        '{"verdict": 1, "reason": "有画面"}',
        '```json\n{"verdict": 1, "reason": "有画面"}\n```',
        '结论如下：{"verdict": "1", "reason": " 有画面 ",}，请查收。',
        '<think>{"verdict": 0, "reason": "?"}</think>{"reason": "有画面", "verdict": 1}',
        '{"verdict": 1, "reason": "有画面", "extra": {"a": [1,]}}',
        '{"verdict": 1, "reason": "有画面"} {"verdict": 1, "reason": "有画面"}',
    ],
)
def test_one_reading(text):
    assert parse_json(text, SCHEMA) == READ


@pytest.mark.parametrize(
    "text",
    [
        "", "Good", '{"verdict": 1', '{"verdict": 1}', '{"verdict": 2, "reason": "x"}', '{"verdict": true, "reason": "x"}',
        '{"verdict": null, "reason": "x"}', '{"verdict": 1, "reason": 3}', '[1, "x"]',
        '{"verdict": 1, "reason": "x"} 或者 {"verdict": 0, "reason": "x"}',
    ],
)  # fmt: skip
def test_no_reading_is_no_verdict(text):
    with pytest.raises(ReplyError):
        parse_json(text, SCHEMA)


def test_verdict_words():
    assert parse_verdict("Good") == {"verdict": "Good", "reason": ""}
    assert parse_verdict("**bad**：称呼错人") == {"verdict": "Bad", "reason": "称呼错人"}
    assert parse_verdict("Bad：称呼错人")["reason"] == "称呼错人"
    assert parse_verdict("<think>Bad?</think>\nGood.")["verdict"] == "Good"
    for text in ("", "很好", "The answer is Good", "Goodness", "not bad"):
        with pytest.raises(ReplyError):
            parse_verdict(text)


class Script:
    """A model that says what the list says, in order, and keeps what it was asked."""

    name = "script"

    def __init__(self, replies):
        self.replies, self.asked = list(replies), []

    def complete(self, requests, on_reply=None):
        self.asked.append(list(requests))
        return [self.replies.pop(0) for _ in requests]


def test_asked_again_with_the_problem_and_only_so_often():
    good = LLMReply('{"verdict": 1, "reason": "好"}')
    bad, failed = LLMReply("好得很"), LLMReply(failure=Failure("timeout", "60 s"))
    llm = Script([good, bad, failed, bad, LLMReply('{"verdict": 0, "reason": "差"}')])
    requests = [LLMRequest((Message("user", str(i)),)) for i in range(3)]
    answers = ask(llm, requests, lambda t: parse_json(t, SCHEMA), attempts=3)
    assert [a.value and a.value["verdict"] for a in answers] == [1, 0, None]
    assert answers[2].problem == "timeout: 60 s"
    assert [len(batch) for batch in llm.asked] == [3, 1, 1]  # a failed request is not asked again here
    roles = [m.role for m in llm.asked[2][0].messages]
    assert roles == ["user", "assistant", "user"]  # the last problem alone: old ones would only fill the window
    assert "JSON" in llm.asked[1][0].messages[-1].content
    stubborn = ask(Script([bad] * 3), requests[:1], lambda t: parse_json(t, SCHEMA), attempts=3)
    assert stubborn[0].value is None and stubborn[0].text == "好得很"
