"""Damaged data files: a record that can be written and read again, or a UserError; no other end, no hang, no growth of memory."""

import json
import math
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlaif_jax.data import tfds_builder
from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, Record, SftExample, turns_of
from rlaif_jax.data.sources import load
from tests.fuzz.mutate import json_mutations, mutations, outcomes

KINDS = (SftExample, PreferencePair, LabelledResponse, Prompt)
ROWS = [
    {"prompt": "给妈妈写一条祝福", "response": "生日快乐，\n“平安”", "label": 1, "margin": 0.5, "system": "短", "chosen": "好",
     "rejected": "坏"},
    {"prompt": 'Write "one" wish, please', "response": "好🎂", "label": 0, "margin": 0, "system": "", "chosen": "甲",
     "rejected": "乙"},
    {"prompt": "给爸爸写一条祝福", "response": "安康", "label": 1, "margin": 2.0, "system": "", "chosen": "丙", "rejected": "丁"},
]  # fmt: skip
TALK = [{"role": "system", "content": "短"}, {"role": "user", "content": "写"}, {"role": "assistant", "content": "祝您平安"},
        {"role": "user", "content": "再短些"}, {"role": "assistant", "content": "平安"}]  # fmt: skip
CHATS = [
    {"messages": TALK, "label": "good"}, {"conversations": [{"from": "human", "value": "写"}, {"from": "gpt", "value": "好"}]},
    {"messages": TALK[:4], "chosen": TALK[4], "rejected": "坏"}, {"prompt": TALK[1:2], "chosen": TALK[2:3], "rejected": TALK[4:]},
    {"chosen": TALK[:3], "rejected": [*TALK[:2], TALK[4]]}, {"prompt": TALK[:2], "completion": TALK[2:3]},
    {"instruction": "写", "input": "一条", "output": "好", "history": [["一", "二"]], "chosen": "好", "rejected": "坏"},
]  # fmt: skip


def _csv(rows) -> str:
    def cell(value) -> str:
        return '"' + str(value).replace('"', '""') + '"'

    return "\r\n".join([",".join(rows[0]), *(",".join(map(cell, row.values())) for row in rows)]) + "\r\n"


def _seeds(folder: Path) -> dict[str, bytes]:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS * 20), folder / "seed.parquet")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    return {
        ".json": json.dumps(ROWS, ensure_ascii=False).encode(), ".jsonl": lines.encode(), ".csv": _csv(ROWS).encode(),
        ".parquet": (folder / "seed.parquet").read_bytes(),
    }  # fmt: skip


def _written(folder: Path, records: list[Record]) -> list[Record]:
    """The records after a way through a file."""
    rows = [{**vars(r), "meta": json.loads(json.dumps(dict(r.meta), default=str))} for r in records]
    path = folder / "again.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows), encoding="utf-8")
    return load(type(records[0]), path).records


def _sound(folder: Path, records: list[Record]) -> None:
    """What is accepted is text that files and tokenizers can hold, and numbers that losses can use."""
    for record in records:
        for turn in turns_of(record):
            assert (turn["content"].strip() and "\x00" not in turn["content"]) or turn["role"] == "system"
            turn["content"].encode("utf-8")
        assert getattr(record, "label", 0) in (0, 1)
        assert math.isfinite(getattr(record, "margin", 0.0)) and getattr(record, "margin", 0.0) >= 0
    again = _written(folder, records)
    assert [turns_of(r) for r in again] == [turns_of(r) for r in records]


def check_files(folder: Path, suffix: str, count: int) -> tuple[int, int]:
    """(accepted, refused) of `count` damaged files of one kind."""
    path, number = folder / f"a{suffix}", iter(range(10**9))

    def read(content: bytes) -> list[Record]:
        path.write_bytes(content)
        kind = KINDS[next(number) % 3]
        return load(kind, path, on_error=("raise", "skip")[next(number) % 2]).records

    accepted, refused = outcomes(read, mutations(_seeds(folder)[suffix], count, 11))
    for content, records in accepted[:: max(len(accepted) // 300, 1)]:
        _sound(folder, records)
        if suffix == ".jsonl":  # the oracle: lines end with \n alone, and a name is there once
            known = {json.loads(line)["prompt"] for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if _parses(line)}
            assert {r.prompt for r in records} <= known
    return len(accepted), refused


def _parses(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict) and "prompt" in json.loads(line)
    except (ValueError, RecursionError):
        return False


def check_rows(folder: Path, count: int) -> tuple[int, int]:
    """(accepted, refused) of `count` rows with other values: no turn of an accepted chat is missing."""
    path, number = folder / "a.json", iter(range(10**9))

    def read(row: object) -> list[Record]:
        path.write_text(json.dumps([row]), encoding="utf-8")
        return load(KINDS[next(number) % 4], path).records

    accepted = refused = 0
    for seed, row in enumerate((*ROWS[:1], *CHATS)):
        found, bad = outcomes(read, json_mutations(row, count // (len(CHATS) + 1) + 1, seed))
        for mutated, records in found:
            _sound(folder, records)
            turns = mutated.get("messages")
            if isinstance(turns, list) and mutated.get("prompt") is None and mutated.get("query") is None:
                assert len(turns_of(records[0])) + hasattr(records[0], "response") >= len(turns) - (len(records[0].meta) > 0)
        accepted, refused = accepted + len(found), refused + bad
    return accepted, refused


def check_tfds(folder: Path, count: int) -> tuple[int, int]:
    """(accepted, refused) of `count` damaged TFDS folders."""
    whole = tfds_builder.build({"train": [SftExample(r["prompt"], r["response"]) for r in ROWS]}, "a", "1.0.0", folder)
    expected, files = load(SftExample, f"tfds:{whole}").records, sorted(f for f in whole.iterdir() if f.is_file())
    accepted = refused = 0
    for i, file in enumerate(files):
        content, copy = file.read_bytes(), folder / "copy"
        shutil.copytree(whole, copy, dirs_exist_ok=True)

        def read(damaged: bytes, target: Path = copy / file.name, copy: Path = copy) -> list[Record]:
            target.write_bytes(damaged)
            return load(SftExample, f"tfds:{copy}").records

        found, bad = outcomes(read, mutations(content, count // len(files) + 1, i), seconds=10.0)
        for _, records in found:
            assert records == expected[: len(records)], "records of a damaged data set are those that were written"
        accepted, refused = accepted + len(found), refused + bad
        shutil.rmtree(copy)
    return accepted, refused


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_damaged_files(tmp_path, suffix):
    accepted, refused = check_files(tmp_path, suffix, 250)
    assert accepted and refused


def test_rows_with_other_values(tmp_path):
    accepted, refused = check_rows(tmp_path, 400)
    assert accepted and refused


def test_damaged_tfds_folders(tmp_path):
    accepted, refused = check_tfds(tmp_path, 24)
    assert accepted + refused >= 24


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_ten_thousand_damaged_files(tmp_path, suffix):
    print(suffix, check_files(tmp_path, suffix, 10_000))


@pytest.mark.slow
def test_ten_thousand_rows_with_other_values(tmp_path):
    print("rows", check_rows(tmp_path, 10_000))


@pytest.mark.slow
def test_ten_thousand_damaged_tfds_folders(tmp_path):
    print("tfds", check_tfds(tmp_path, 10_000))
