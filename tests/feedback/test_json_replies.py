"""What a model says when it should say JSON."""

import dataclasses
import time

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
        '草稿 {"verdict": 0, "reason": "?"} 再想想</think>{"verdict": 1, "reason": "有画面"}',
        '<|channel|>analysis<|message|>{"verdict": 0, "reason": "?"}<|channel|>final<|message|>{"verdict": 1, "reason": "有画面"}',
        '{"verdict": 1.0, "reason": "有画面"}', '{"verdict": "１", "reason": "有画面"}', '\ufeff{"verdict": 1, "reason": "有画面"}',
        'in { braces } {"verdict": 1, "reason": "有画面"}', '5" {"verdict": 1, "reason": "有画面", }',
    ],
)  # fmt: skip
def test_one_reading(text):
    assert parse_json(text, SCHEMA) == READ


@pytest.mark.parametrize(
    "text",
    [
        "", "Good", '{"verdict": 1', '{"verdict": 1}', '{"verdict": 2, "reason": "x"}', '{"verdict": true, "reason": "x"}',
        '{"verdict": null, "reason": "x"}', '{"verdict": 1, "reason": 3}', '[1, "x"]',
        '{"verdict": 1, "reason": "x"} 或者 {"verdict": 0, "reason": "x"}',
        '{"verdict": 1, "reason": "x",} 或者 {"verdict": 0, "reason": "x"}', '<think>{"verdict": 1, "reason": "x"}',
        '{"verdict": 0.99999999999999999999, "reason": "x"}', '{"verdict": NaN, "reason": "x"}', '{"verdict": -1, "reason": "x"}',
        '{"verdict": 1, "verdict": 0, "reason": "x"}', '{"verdict": ①, "reason": "x"}', '{"verdict": "①", "reason": "x"}',
        '{"verdict": [1], "reason": "x"}', '{"verdict": 1, "reason": ["x"]}', '{"result": {"verdict": 1, "reason": "x"}}',
    ],
)  # fmt: skip
def test_no_reading_is_no_verdict(text):
    with pytest.raises(ReplyError):
        parse_json(text, SCHEMA)


def test_texts_of_the_object_are_read_as_they_are():
    assert parse_json('{"verdict": 1, "reason": "a,}", }', SCHEMA)["reason"] == "a,}"  # only the comma too many is dropped
    assert parse_json('{"verdict": 1, "reason": "says <think> twice: <think>"}', SCHEMA)["reason"] == "says <think> twice: <think>"
    assert parse_json('{"verdict": 1, "reason": "half \\ud83d, whole \\ud83d\\ude00"}', SCHEMA)["reason"] == "half \ufffd, whole 😀"


@pytest.mark.parametrize(
    ("number", "read"), [("3", 3), ('"3"', 3), ('" -2 "', -2), ('"３"', 3), ("②", None), ('"②"', None), ('"--2"', None),
                         ("2.5", None), ('"²"', None), ("true", None), ("null", None), ("9" * 5000, None),
                         (f'"{"9" * 5000}"', None), ("[2]", None)]
)  # fmt: skip
def test_whole_numbers(number, read):
    text = f'{{"number": {number}}}'
    if read is None:
        with pytest.raises(ReplyError):
            parse_json(text, {"number": int})
    else:
        assert parse_json(text, {"number": int}) == {"number": read}


@pytest.mark.parametrize(
    "text",
    ["{" * 160_000, "{" * 90_000, '{"a":' * 3000, '{"a":' * 19_000, '[{"a":' * 15_000, '{"a":[' * 15_000,
     '{"verdict": ' + "9" * 90_000,
     '{"a":1,' * 14_000, '{"a":[1,1,1,1,1,1,' * 5000, '\\"' * 45_000, '{"verdict": 1,' + " " * 90_000 + "}", '{"a":"' * 16_000,
     '{"a":1,}' * 12_000, "[" * 90_000, '{"verdict": 1, "reason": "x"}' * 3300],
)  # fmt: skip
def test_no_reply_is_too_much(text):
    start = time.process_time()
    for parse in (lambda t: parse_json(t, SCHEMA), parse_verdict):
        try:
            parse(text)
        except ReplyError as error:
            assert len(str(error)) < 200  # it is sent to the model
    assert time.process_time() - start < 1.5


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


def test_a_reply_that_was_cut_off_is_no_verdict_out_of_a_draft():
    def read(text, finish="length"):
        return ask(Script([LLMReply(text, finish_reason=finish)]), [LLMRequest((Message("user", "?"),))], parse, attempts=1)[0]

    def parse(text):
        return parse_json(text, SCHEMA)

    draft = '也许 {"verdict": 1, "reason": "好"}，不过'
    assert read(draft, "stop").value["verdict"] == 1
    assert read(draft).value is None and read(draft).failure.kind == "cut"
    assert read("<think>" + draft).failure.kind == "thinking" and read("").failure.kind == "empty"
    assert read('{"verdict": 1, "rea').failure.kind == "cut" and read('{"verdict": 1, "rea', "stop").failure.kind == "unreadable"
    clean = '{"verdict": 1, "reason": "好"}'
    for whole in (clean, f"结论：{clean}", f"```json\n{clean}\n```\n此外"):
        assert read(whole).value["verdict"] == 1
    cut = LLMReply("Bad：占位词 {name} 没有", finish_reason="length")
    spoken = ask(Script([cut]), [LLMRequest((Message("user", "?"),))], parse_verdict)
    assert spoken[0].value["verdict"] == "Bad"


def test_a_reply_without_an_answer_is_asked_again_by_another_request():
    request = LLMRequest((Message("system", "s"), Message("user", "问")), seed=5)
    for reply in (LLMReply(""), LLMReply("<think>想", finish_reason="length")):
        llm = Script([reply, LLMReply('{"verdict": 0, "reason": "差"}')])
        assert ask(llm, [request], lambda t: parse_json(t, SCHEMA))[0].value["verdict"] == 0
        again = llm.asked[1][0]
        assert again.seed != request.seed and [m.role for m in again.messages] == ["system", "user"]  # no empty turn in the chat
        assert again.messages[-1].content.startswith("问\n\n")
    llm = Script([LLMReply("<think>长</think>不知道" + "长" * 9000), LLMReply('{"verdict": 0, "reason": "差"}')])
    ask(llm, [request], lambda t: parse_json(t, SCHEMA))
    assert llm.asked[1][0].messages[2].content.startswith("不知道") and len(llm.asked[1][0].messages[2].content) == 2000


def test_half_characters_never_get_past_a_reply():
    reply = LLMReply("好\ud83d", failure=Failure("server", "\udc00"))
    assert (reply.text, reply.failure.detail) == ("好\ufffd", "\ufffd")
    assert dataclasses.replace(reply, text="\ud83d\ude00").text == "😀"
