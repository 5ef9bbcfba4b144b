"""Records: what is accepted, and that an error says where, which field, what was expected and what was found."""

import dataclasses

import pytest

from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, RecordError, SftExample, from_row
from rlaif_jax.errors import UserError

PAIR = {"prompt": "写生日祝福", "chosen": "愿你快乐", "rejected": "生日快乐"}
LABELLED = {"prompt": "写生日祝福", "response": "愿你快乐", "label": 1}


def test_each_kind_from_its_own_fields():
    assert from_row(Prompt, {"prompt": "写", "other": 3}, "f:1") == Prompt("写", meta={"other": 3})
    both = {"prompt": "写", "answer": "4", "meta": {"answer": 5, "x": 1}}
    assert from_row(Prompt, both, "f:1").meta == {"answer": 5, "x": 1}, "an explicit meta wins"
    assert from_row(SftExample, {"prompt": "写", "response": "好", "system": None}, "f:1") == SftExample("写", "好")
    assert from_row(PreferencePair, PAIR | {"margin": "0.5"}, "f:1").margin == 0.5
    assert from_row(LabelledResponse, LABELLED | {"meta": {"festival": "春节"}}, "f:1").meta == {"festival": "春节"}


@pytest.mark.parametrize("spelled, label", [
    (1, 1), (0, 0), ("1", 1), ("0", 0), (1.0, 1), (True, 1), (False, 0), ("Good", 1), (" bad ", 0), ("TRUE", 1), ("no", 0),
    ("Yes", 1), ("好", 1), ("坏", 0), ("是", 1), ("错", 0),
])
def test_labels_become_integers(spelled, label):
    found = from_row(LabelledResponse, LABELLED | {"label": spelled}, "f:1").label
    assert found == label and type(found) is int


@pytest.mark.parametrize(
    "kind, row, field, found",
    [
        (Prompt, {"prompt": ""}, "prompt", "''"),
        (Prompt, {"prompt": " \n"}, "prompt", "' \\n'"),
        (Prompt, {"prompt": 7}, "prompt", "7"),
        (Prompt, {"query": "写"}, "prompt", "'query'"),
        (SftExample, {"prompt": "写", "response": None}, "response", "found no value"),
        (PreferencePair, PAIR | {"rejected": ""}, "rejected", "''"),
        (PreferencePair, PAIR | {"rejected": PAIR["chosen"]}, "chosen", "愿你快乐"),
        (PreferencePair, PAIR | {"margin": -1}, "margin", "-1"),
        (PreferencePair, PAIR | {"margin": float("nan")}, "margin", "nan"),
        (PreferencePair, PAIR | {"margin": "inf"}, "margin", "inf"),
        (LabelledResponse, LABELLED | {"label": 2}, "label", "2"),
        (LabelledResponse, LABELLED | {"label": 0.5}, "label", "0.5"),
        (LabelledResponse, LABELLED | {"label": None}, "label", "found no value"),
        (LabelledResponse, LABELLED | {"label": "goodish"}, "label", "'goodish'"),
        (PreferencePair, PAIR | {"margin": "1_0"}, "margin", "'1_0'"),
        (SftExample, {"prompt": "写", "response": "好", "history": "no list"}, "history", "'no list'"),
        (SftExample, {"prompt": "写", "response": "好\ud83d"}, "response", "U+D83D"),
        (Prompt, {"prompt": "写", "system": ["x"]}, "system", "['x']"),
    ],
)
def test_bad_rows_are_named(kind, row, field, found):
    with pytest.raises(RecordError) as error:
        from_row(kind, row, "data.jsonl:17")
    message = str(error.value)
    assert message.startswith("data.jsonl:17: ") and repr(field) in message and found in message
    assert ("expected" in message or "half of" in message) and isinstance(error.value, UserError)


def test_long_values_are_shortened():
    with pytest.raises(RecordError) as error:
        from_row(PreferencePair, PAIR | {"chosen": "好" * 500, "rejected": "好" * 500}, "f:1")
    assert len(str(error.value)) < 200


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Prompt("写").prompt = "x"
