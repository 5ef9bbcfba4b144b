"""Files as they are in the wild: every byte is read as it was written, or refused with its file and line."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rlaif_jax.data.files import read_rows
from rlaif_jax.data.records import PreferencePair, Prompt, RecordError, SftExample
from rlaif_jax.data.sources import load
from rlaif_jax.errors import UserError


def _written(tmp_path, name: str, content: str | bytes):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def _refusal(kind, path, **options) -> str:
    with pytest.raises(UserError) as error:
        load(kind, path, **options)
    return str(error.value)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_only_a_newline_ends_a_line(tmp_path, separator, suffix):
    text = f"给老师{separator}写一句祝福"
    raw = separator if separator >= "\x7f" else json.dumps(separator)[1:-1]  # JSON wants the others escaped
    rows = [f'{{"prompt": "{text.replace(separator, raw)}"}}', '{"prompt": "二"}']
    content = {"jsonl": "\n".join(rows), "json": f"[{', '.join(rows)}]", "csv": f'prompt\n"{text}"\n二\n'}[suffix]
    found = load(Prompt, _written(tmp_path, f"a.{suffix}", content)).records
    assert [r.prompt for r in found] == [text, "二"]


@pytest.mark.parametrize("name, content", [
    ("a.CSV", "prompt\n写\n"), ("a.JSONL", '{"prompt": "写"}'), ("a.Json", '[{"prompt": "写"}]'),
])  # fmt: skip
def test_suffixes_in_any_case_and_a_byte_order_mark(tmp_path, name, content):
    for mark in ("", "\ufeff"):
        assert load(Prompt, _written(tmp_path, name, mark + content)).records == [Prompt("写")]


@pytest.mark.parametrize("name, content, line", [
    ("a.jsonl", '{"prompt": "一"}\n{"prompt": "写\\ud83c"}\n', "a.jsonl:2: field 'prompt': has half of a surrogate pair (U+D83C)"),
    ("b.json", '[{"prompt": "一"},\n{"prompt": "\\udf82写"}]', "b.json:2, row 2: field 'prompt': has half of a surrogate pair"),
    ("c.jsonl", '{"prompt": "一"}\n{"prompt": "二", "tags": ["\\ud800"]}\n', "c.jsonl:2: field 'meta': has half of a surrogate"),
    ("d.jsonl", '{"prompt": "一"}\n{"prompt": "a\\u0000b"}\n', "d.jsonl:2: field 'prompt': has a NUL character"),
    ("e.csv", "prompt\n一\na\x00b\n", "e.csv:3: field 'prompt': has a NUL character"),
    ("f.jsonl", '{"prompt": "一"}\n{"prompt": "a", "prompt": "b"}\n', "f.jsonl:2: expected one JSON object per line: the name"),
    ("g.jsonl", '{"prompt": "一"}\n' + '{"a":' * 4000, "g.jsonl:2: expected one JSON object per line: "),
    ("h.jsonl", '{"prompt": "一"}\n{"prompt": "二", "n": ' + "9" * 5000 + "}", "h.jsonl:2: expected one JSON object per line: "),
    ("i.jsonl", '{"prompt": "一"}\n{"prompt": "写"'.encode() + b"\xff}\n", "i.jsonl:2: not UTF-8 at byte 16 of the line"),
    ("j.csv", "prompt,response\n一,二\n只有一个\n", "j.csv:3: expected 2 columns, found only 1"),
])  # fmt: skip
def test_a_bad_row_has_its_line_and_can_be_skipped(tmp_path, name, content, line):
    path = _written(tmp_path, name, content)
    assert line in _refusal(Prompt, path)
    loaded = load(Prompt, path, on_error="skip")
    assert [r.prompt for r in loaded.records] == ["一"] and len(loaded.skipped) == 1


@pytest.mark.parametrize("name, content, message", [
    ("a.csv", 'prompt,response\n一,二\n"三,四\n五,六\n', "a.csv:3: not CSV: the quote that opens in this line is never closed"),
    ("b.csv", 'prompt,response\n"一\n一",二\n三,"四\n五,六\n', "b.csv:4: not CSV: the quote that opens in this line"),
    ("c.csv", 'prompt,response\n"一"二,三\n', "c.csv:2: not CSV"),
    ("d.csv", "prompt,prompt\n一,二\n", "d.csv:1: two columns are named 'prompt'"),
    ("e.csv", "prompt\n一\n".encode() + b"\xb0\xa1\n", "e.csv:3: not UTF-8 at byte"),
    ("f.json", '[{"prompt": "一"},\n{"prompt": \n]', "f.json:3: not JSON"),
    ("g.json", '[{"prompt": "一"}\n{"prompt": "二"}]', "g.json:2: not JSON: expected a comma"),
    ("h.json", '[{"prompt": "一"},]', "h.json:1: not JSON: expected a comma and the next row"),
    ("i.json", '[{"prompt": "一"}] more', "i.json:1: not JSON: expected ]"),
    ("j.json", '[{"prompt": "一"}', "j.json:1: not JSON"),
    ("k.json", "[" * 100_000, "k.json:1: not JSON: the values are nested too deeply"),
    ("l.json", '[{"prompt": "一", "prompt": "二"}]', "l.json:1: not JSON: the name 'prompt' is there twice"),
    ("m.jsonl", '{"prompt": "一"}'.encode("utf-16"), "m.jsonl:1: UTF-16, not UTF-8"),
    ("n.csv", "prompt\n一\n".encode("utf-16"), "n.csv:1: UTF-16, not UTF-8"),
])  # fmt: skip
def test_a_broken_file_is_refused_with_its_line(tmp_path, name, content, message):
    assert message in _refusal(Prompt, _written(tmp_path, name, content))


def test_csv_cells_may_be_long_quoted_and_over_several_lines(tmp_path):
    long, quoted = "长" * 200_000, '他说："好"，\r\n然后走了'
    path = _written(tmp_path, "a.csv", 'prompt,response\r\na,{}\r\nb,"{}"\r\n'.format(long, quoted.replace('"', '""')))
    assert [r.response for r in load(SftExample, path).records] == [long, quoted]


def test_an_empty_optional_cell_is_the_default(tmp_path):
    path = _written(tmp_path, "a.csv", "prompt,chosen,rejected,margin,system,meta\n写,好,坏,,,\n写二,好,坏,0.5,短,\n")
    assert load(PreferencePair, path).records == [PreferencePair("写", "好", "坏"), PreferencePair("写二", "好", "坏", 0.5, "短")]
    columns = {"margin": "gap"}
    path = _written(tmp_path, "b.csv", "prompt,chosen,rejected,gap\n写,好,坏,\n")
    assert load(PreferencePair, path, columns=columns).records[0].margin == 0.0


def test_one_object_over_several_lines_is_one_row(tmp_path):
    path = _written(tmp_path, "a.json", '{\n "prompt": "写"\n}\n')
    assert load(Prompt, path).records == [Prompt("写")]


def _shards(folder, names, suffix="parquet"):
    folder.mkdir()
    for number, name in enumerate(names):
        rows = [{"prompt": f"{number}-{i}"} for i in range(2)]
        if suffix == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")
        else:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_folder_of_shards_is_one_file(tmp_path, suffix):
    folder = _shards(tmp_path / "all", [f"train-0000{i}-of-00003" for i in (2, 0, 1)], suffix)
    (folder / "_SUCCESS").touch()
    (folder / ".part.crc").touch()
    assert [r.prompt for r in load(Prompt, folder).records] == ["1-0", "1-1", "2-0", "2-1", "0-0", "0-1"]
    next(iter(folder.glob("*00001-of*"))).unlink()
    assert "expected 3 shards" in _refusal(Prompt, folder)


def test_shards_of_several_sets_are_not_mixed(tmp_path):
    folder = _shards(tmp_path / "all", ["train-0", "train-1", "test-0"])
    assert "files of several sets" in _refusal(Prompt, folder)
    assert len(load(Prompt, folder / "train-*.parquet").records) == 4
    assert "files of several sets" in _refusal(Prompt, _shards(tmp_path / "two", ["a-0-of-1", "b-0-of-1"]))
    assert "no data file" in _refusal(Prompt, _shards(tmp_path / "none", []))
    (tmp_path / "none" / "dataset_info.json").write_text("{}")
    assert "for TFDS write tfds:" in _refusal(Prompt, tmp_path / "none")


def test_a_parquet_that_is_cut_is_refused(tmp_path):
    folder = _shards(tmp_path / "all", ["a"])
    path = folder / "a.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a parquet file" in _refusal(Prompt, folder)


def test_a_row_that_cannot_be_parsed_comes_in_its_place(tmp_path):
    rows = [row for _, row in read_rows(_written(tmp_path, "a.jsonl", '{"a": 1}\noops\n{"a": 2}\n'))]
    assert rows[0] == {"a": 1} and isinstance(rows[1], RecordError) and rows[2] == {"a": 2}
