"""Sources: every file form gives the same records; bad rows are named or skipped and counted."""

import csv
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, RecordError, SftExample
from rlaif_jax.data.sources import load
from rlaif_jax.errors import UserError

PAPER = Path(os.environ.get("RLAIF_PAPER_DATA", ""))
needs_paper = pytest.mark.skipif(not os.environ.get("RLAIF_PAPER_DATA"), reason="RLAIF_PAPER_DATA is not set")
ROWS = [
    {"prompt": "写生日祝福", "response": "愿你快乐，\n平安", "label": 1},
    {"prompt": '写，"中秋"', "response": "好", "label": 0},
]
EXPECTED = [LabelledResponse(**row) for row in ROWS]


def write(path: Path, rows: list) -> Path:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.name.endswith(".lines.json") or path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n\n" for r in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.lines.json", "a.csv", "a.parquet"])
def test_all_forms_give_the_same_records(tmp_path, name):
    loaded = load(LabelledResponse, write(tmp_path / name, ROWS))
    assert loaded.records == EXPECTED and loaded.skipped == []


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS).encode())
    assert load(LabelledResponse, path).records == EXPECTED


def test_columns_reach_into_objects_and_lists(tmp_path):
    path = write(tmp_path / "a.json", [{"q": {"text": "写"}, "answers": [{"t": "坏"}, {"t": "好"}], "a.b": "系统"}])
    columns = {"prompt": "q.text", "response": "answers.1.t", "system": "a.b"}
    assert load(SftExample, path, columns=columns).records == [SftExample("写", "好", "系统")]
    with pytest.raises(RecordError, match=r"row 1: column 'answers.2.t' for field 'response'.*'q', 'answers', 'a.b'"):
        load(SftExample, path, columns=columns | {"response": "answers.2.t"})
    with pytest.raises(UserError, match="SftExample has no field reponse"):
        load(SftExample, path, columns={"reponse": "q"})


def test_columns_override_an_adapter(tmp_path):
    path = write(tmp_path / "a.json", [{"instruction": "写", "output": "好", "better": "更好"}])
    loaded = load(SftExample, path, format="alpaca", columns={"response": "better"})
    assert loaded.records == [SftExample("写", "更好")]


def test_prefix_and_limit(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    assert [r.prompt for r in load(Prompt, path, prefix="只一条：", limit=1).records] == ["只一条：写生日祝福"]
    assert len(load(Prompt, path, limit=0).records) == len(load(Prompt, path, limit=None).records) == 2
    with pytest.raises(UserError, match="limit: expected a number of rows, or 0 for all; found -1"):
        load(Prompt, path, limit=-1)
    with pytest.raises(RecordError, match="'prompt'"):  # a prefix makes no blank prompt valid
        load(Prompt, write(tmp_path / "b.jsonl", [{"prompt": " "}]), prefix="只一条：")


PAIR = {"conversations": [{"from": "human", "value": "写"}], "chosen": {"from": "gpt", "value": "好"},
        "rejected": {"from": "gpt", "value": "坏"}}  # fmt: skip


@pytest.mark.parametrize(
    "format, kind, row, expected",
    [
        ("sharegpt_pairs", PreferencePair, PAIR, PreferencePair("写", "好", "坏")),
        (
            "sharegpt_pairs", PreferencePair,
            PAIR | {"conversations": [{"from": "system", "value": "系"}, {"from": "human", "value": "写"}]},
            PreferencePair("写", "好", "坏", system="系"),
        ),
        ("alpaca", SftExample, {"instruction": "写", "input": "", "output": "好"}, SftExample("写", "好")),
        ("alpaca", SftExample, {"instruction": "写", "input": "春", "output": "好"}, SftExample("写\n春", "好")),
        ("alpaca", Prompt, {"instruction": "写"}, Prompt("写")),
        (
            "verl", Prompt, {"prompt": [{"role": "system", "content": "系"}, {"role": "user", "content": "写"}]},
            Prompt("写", "系"),
        ),
        ("labelled", LabelledResponse, {"query": "写", "response": "好", "label": 0}, LabelledResponse("写", "好", 0)),
    ],
)  # fmt: skip
def test_adapters(tmp_path, format, kind, row, expected):
    assert load(kind, write(tmp_path / "a.parquet", [row]), format=format).records == [expected]
    assert load(kind, write(tmp_path / "a.json", [row]), format=format).records == [expected]


@pytest.mark.parametrize(
    "format, kind, row, message",
    [
        ("sharegpt_pairs", PreferencePair, PAIR | {"chosen": 7}, "row 1: field 'chosen'"),
        ("sharegpt_pairs", PreferencePair, PAIR | {"conversations": []}, "row 1: column 'conversations'"),
        (
            "verl", Prompt,
            {"prompt": PAIR["conversations"] + [{"from": "gpt", "value": "x"}] + PAIR["conversations"]},
            "found a chat of 3 turns",
        ),
        ("verl", Prompt, {"prompt": "写"}, "row 1: column 'prompt': expected a list of chat turns, found str"),
        ("alpaca", SftExample, {"instruction": ["写"], "output": "好"}, r"field 'prompt': expected text, found \[\["),
        ("labelled", LabelledResponse, {"query": "写", "response": "好", "label": "so so"}, "'label'.*'so so'"),
    ],
)  # fmt: skip
def test_adapters_name_what_is_wrong(tmp_path, format, kind, row, message):
    with pytest.raises(RecordError, match=message):
        load(kind, write(tmp_path / "a.json", [row]), format=format)


def test_bad_rows_raise_or_are_skipped_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "一"}\n{"prompt": ""}\n{"prompt": \n[1]\n{"prompt": "五"}\n', encoding="utf-8")
    with pytest.raises(RecordError, match=r"a\.jsonl:2: field 'prompt'"):
        load(Prompt, path)
    loaded = load(Prompt, path, on_error="skip")
    assert [r.prompt for r in loaded.records] == ["一", "五"]
    assert [reason.split(": ")[0].rpartition(":")[2] for reason in loaded.skipped] == ["2", "3", "4"]
    assert loaded.summary(1).startswith("2 records, 3 rows skipped: ") and loaded.summary(1).endswith("; ...")


def test_csv_errors_count_lines_not_records(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,response\n"多\n行",好\n写,\n写,好,多\n', encoding="utf-8")
    assert [s.partition(": ")[0] for s in load(SftExample, path, on_error="skip").skipped] == [f"{path}:4", f"{path}:5"]


def test_files_that_cannot_be_read(tmp_path):
    def failing(name: str, content: bytes, **options) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            load(Prompt, path, **options)
        assert name in str(error.value) or options
        return str(error.value)

    with pytest.raises(UserError, match="does not exist"):
        load(Prompt, tmp_path / "none.json")
    assert "cannot read .txt" in failing("a.txt", b"x")
    assert "b.json:2: not JSON" in failing("b.json", b'[{"prompt": "x"},\n oops]')
    assert "c.jsonl:1: not UTF-8 at byte 14 of the line" in failing("c.jsonl", '{"prompt": "祝福"}'.encode("gbk"))
    assert "not a parquet file" in failing("d.parquet", b"PAR?")
    assert "no usable record" in failing("e.json", b"[]")
    assert "no usable record; first problem: " in failing("f.json", b'[{"prompt": ""}]', on_error="skip")
    assert "known: auto, chat" in failing("g.json", b"[]", format="sharegpt")
    assert "expected raise or skip" in failing("h.json", b"[]", on_error="ignore")


@needs_paper
def test_the_papers_files():
    pairs = [load(PreferencePair, PAPER / f"reward_data_{s}.json", format="sharegpt_pairs", on_error="skip")
             for s in ("train", "test")]  # fmt: skip
    assert sum(len(p.skipped) for p in pairs) == 13
    assert all("'chosen' and 'rejected'" in reason for p in pairs for reason in p.skipped)
    assert len(load(SftExample, PAPER / "sft_data.json", format="alpaca").records) == 4000
    prompts = load(Prompt, PAPER / "grpo_train.parquet", format="verl").records
    assert len(prompts) == 3200 and all(p.prompt.startswith("请只生成一条祝福语：") for p in prompts)
    labelled = load(LabelledResponse, PAPER / "evaluate_data.json", format="labelled").records
    assert {r.label for r in labelled} == {0, 1}
