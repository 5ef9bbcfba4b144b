"""The forms that people have: each is read with all of its turns, or refused with what was expected."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, RecordError, SftExample, turns_of
from rlaif_jax.data.sources import load


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


PAIR = PreferencePair("写", "好", "坏")
LATER = PreferencePair("再短些", "好", "坏", history=(("写", "祝您平安快乐"),))
TALK = [user("写"), assistant("祝您平安快乐"), user("再短些")]

READ = [
    (SftExample, {"messages": [user("写"), assistant("好")]}, SftExample("写", "好")),
    (SftExample, {"messages": [system("系"), user("写"), assistant("好")]}, SftExample("写", "好", "系")),
    (SftExample, {"messages": [*TALK, assistant("平安")]}, SftExample("再短些", "平安", history=(("写", "祝您平安快乐"),))),
    (SftExample, {"conversations": [human("写"), gpt("祝您平安快乐"), human("再短些"), gpt("平安")]},
     SftExample("再短些", "平安", history=(("写", "祝您平安快乐"),))),
    (SftExample, {"conversations": [human("写"), gpt("好")], "system": "系"}, SftExample("写", "好", "系")),
    (SftExample, {"messages": [user([{"type": "text", "text": "写"}]), assistant([{"type": "text", "text": "好"}])]},
     SftExample("写", "好")),
    (SftExample, {"prompt": "写", "completion": "好"}, SftExample("写", "好")),
    (SftExample, {"prompt": [user("写")], "completion": [assistant("好")]}, SftExample("写", "好")),
    (SftExample, {"query": "写", "response": "好"}, SftExample("写", "好")),
    (SftExample, {"instruction": "再短些", "input": "", "output": "平安", "history": [["写", "祝您平安快乐"]]},
     SftExample("再短些", "平安", history=(("写", "祝您平安快乐"),))),
    (SftExample, {"instruction": "写", "output": "好", "history": []}, SftExample("写", "好")),
    (PreferencePair, {"instruction": "写", "input": "", "chosen": "好", "rejected": "坏"}, PAIR),
    (PreferencePair, {"query": "写", "chosen": "好", "rejected": "坏"}, PAIR),
    (PreferencePair, {"prompt": "写", "chosen": [assistant("好")], "rejected": [assistant("坏")]}, PAIR),
    (PreferencePair, {"prompt": "写", "chosen": [user("写"), assistant("好")], "rejected": [user("写"), assistant("坏")]}, PAIR),
    (PreferencePair, {"prompt": [user("写")], "chosen": [assistant("好")], "rejected": [assistant("坏")]}, PAIR),
    (PreferencePair, {"prompt": [system("系"), *TALK], "chosen": "好", "rejected": "坏"},
     PreferencePair("再短些", "好", "坏", system="系", history=LATER.history)),
    (PreferencePair, {"chosen": [*TALK, assistant("好")], "rejected": [*TALK, assistant("坏")]}, LATER),
    (PreferencePair, {"messages": TALK, "chosen": assistant("好"), "rejected": assistant("坏")}, LATER),
    (PreferencePair, {"conversations": [human("写")], "chosen": gpt("好"), "rejected": gpt("坏")}, PAIR),
    (PreferencePair, {"conversations": [human("写")], "chosen": "好", "rejected": "坏"}, PAIR),
    (Prompt, {"prompt": [system("系"), user("写")]}, Prompt("写", "系")),
    (Prompt, {"messages": [user("写")], "answer": 4}, Prompt("写", meta={"answer": 4})),
    (Prompt, {"messages": [user("写"), assistant("好")]}, Prompt("写", meta={"response": "好"})),
    (Prompt, {"query": "写"}, Prompt("写")),
    (LabelledResponse, {"prompt": "写", "completion": "好", "label": True}, LabelledResponse("写", "好", 1)),
    (LabelledResponse, {"messages": [user("写"), assistant("好")], "label": "bad"}, LabelledResponse("写", "好", 0)),
]  # fmt: skip


@pytest.mark.parametrize("kind, row, expected", READ)
def test_a_form_is_known_by_its_columns(tmp_path, kind, row, expected):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert load(kind, path).records == [expected]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert load(kind, tmp_path / "a.parquet").records == [expected]


def test_a_chat_becomes_the_messages_that_a_model_sees():
    record = SftExample("再短些", "平安", "系", history=(("写", "祝您平安快乐"),))
    assert turns_of(record) == [system("系"), *TALK]


REFUSED = [
    (SftExample, {"messages": [user("写")]}, "expected an assistant turn at the end"),
    (SftExample, {"messages": []}, "field 'prompt': expected text|expected a list of chat turns, found none"),
    (SftExample, {"messages": [assistant("好"), user("写"), assistant("好")]}, r"found \[assistant, user\] before the answer"),
    (SftExample, {"messages": [user("写"), user("写"), assistant("好")]}, "user and assistant in turn"),
    (SftExample, {"messages": [user("写"), system("系"), assistant("好")]}, "user and assistant in turn"),
    (SftExample, {"messages": [user("写"), {"role": "tool", "content": "x"}, assistant("好")]},
     "turn 2: expected a role.*'tool'"),
    (SftExample, {"messages": [user("写"), {"role": "assistant", "content": None}]},
     "turn 2: content: expected text, found no value"),
    (SftExample, {"messages": [user("写"), assistant("好") | {"tool_calls": [1]}]}, "turn 2: it calls tools"),
    (SftExample, {"messages": [user([{"type": "image_url", "image_url": "x"}]), assistant("好")]},
     "turn 1: content: expected text"),
    (SftExample, {"messages": ["写", "好"]}, "turn 1: expected an object with role and content, found str"),
    (SftExample, {"messages": [{"speaker": "a"}]}, "turn 1: expected a role.*the turn has 'speaker'"),
    (SftExample, {"messages": [system("系"), user("写"), assistant("好")], "system": "别的"},
     "a system turn, and the field 'system'"),
    (SftExample, {"instruction": "写", "output": "好", "history": ["写"]},
     r"field 'history': expected a list of \[request, answer\]"),
    (Prompt, {"prompt": TALK}, "expected one request, found a chat of 3 turns"),
    (Prompt, {"instruction": "写", "history": [["一", "二"]]}, "expected one request, found a chat of 3 turns"),
    (PreferencePair, {"chosen": "好", "rejected": "坏"}, "field 'prompt': expected text, found no value"),
    (PreferencePair, {"chosen": [user("一"), assistant("好")], "rejected": [user("二"), assistant("坏")]}, "the same turns before"),
    (PreferencePair, {"prompt": "写", "chosen": [user("另一个"), assistant("好")], "rejected": "坏"},
     "'chosen': expected the answer alone"),
    (PreferencePair, {"prompt": "写", "chosen": [user("写")], "rejected": "坏"},
     "'chosen': expected an assistant turn at the end"),
    (PreferencePair, {"messages": [*TALK, assistant("好")], "chosen": "好", "rejected": "坏"},
     r"found \[user, assistant, user, assistant\]"),
]  # fmt: skip


@pytest.mark.parametrize("kind, row, message", REFUSED)
def test_what_cannot_be_read_without_loss_is_refused(tmp_path, kind, row, message):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(row, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(RecordError, match=rf"a\.jsonl:2: .*({message})"):
        load(kind, path)


def test_columns_never_leave_out_turns(tmp_path):
    path = tmp_path / "a.jsonl"
    columns = {"prompt": "messages.0.content", "response": "messages.1.content"}

    def loaded(*messages):
        path.write_text(json.dumps({"messages": messages}, ensure_ascii=False), encoding="utf-8")
        return load(SftExample, path, columns=columns).records

    assert loaded(user("写"), assistant("好")) == [SftExample("写", "好")]
    with pytest.raises(RecordError, match="for field 'prompt': expected a user turn, found system.*format='chat'"):
        loaded(system("系"), user("写"), assistant("好"))
    with pytest.raises(RecordError, match="it has 4 turns, and `columns` uses 2"):
        loaded(user("写"), assistant("好"), user("再短些"), assistant("平安"))


def test_columns_of_ones_own_never_collide_with_ours(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,label,margin,response,row,meta,system\n写,甲,大,参考,7,en-US,短\n", encoding="utf-8")
    expected = Prompt("写", "短", {"label": "甲", "margin": "大", "response": "参考", "row": "7", "meta": "en-US"})
    assert load(Prompt, path).records == [expected]
    assert load(Prompt, path, columns={"system": ""}).records[0].system == "", "an empty name: no column is meant"


def test_a_reader_of_single_requests_refuses_earlier_turns(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [*TALK, assistant("平安")]}) + "\n" + json.dumps({"query": "写", "response": "好"}))
    with pytest.raises(RecordError, match=r"a\.jsonl:1: expected one request and its answer"):
        load(SftExample, path, single=True)
    assert load(SftExample, path, single=True, on_error="skip").records == [SftExample("写", "好")]
