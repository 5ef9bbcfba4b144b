"""The TFDS builder: a round trip through array_record shards, versions that are never overwritten, no TensorFlow."""

import subprocess
import sys

import pytest

from rlaif_jax.data import tfds_builder
from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, RecordError, SftExample
from rlaif_jax.data.sources import load
from rlaif_jax.errors import UserError

PAIRS = [PreferencePair(f"写{i}", f"好\n{i}", "坏", margin=i / 4, system="系", meta={"节": ["春", i]}) for i in range(25)]


@pytest.mark.parametrize(
    "records",
    [
        PAIRS,
        [Prompt("写", meta={"festival": "春节"}), Prompt("写二")],
        [SftExample("写", "好🎂")],
        [LabelledResponse("写", "好", 1), LabelledResponse("写", "坏", 0, "系")],
    ],
)
def test_records_survive_in_order(tmp_path, records):
    folder = tfds_builder.build({"train": records}, "greetings", "1.0.0", tmp_path)
    assert folder == tmp_path / "greetings" / "1.0.0"
    loaded = load(type(records[0]), f"tfds:{folder}").records
    assert loaded == records and type(loaded[0]) is type(records[0])


def test_shards_and_splits_are_plain_tfds(tmp_path):
    import tensorflow_datasets as tfds

    folder = tfds_builder.build({"train": PAIRS, "test": PAIRS[:3]}, "greetings", "1.2.3", tmp_path, shard_records=10)
    assert len(list(folder.glob("*train.array_record*"))) == 3
    builder = tfds.builder_from_directory(str(folder))
    assert str(builder.info.full_name) == "greetings/1.2.3"
    assert {n: s.num_examples for n, s in builder.info.splits.items()} == {"train": 25, "test": 3}
    source = builder.as_data_source("train")
    assert [source[i]["chosen"].decode() for i in range(25)] == [p.chosen for p in PAIRS]
    assert load(PreferencePair, f"tfds:{folder}#test").records == PAIRS[:3]
    with pytest.raises(UserError, match="one of test, train; found none"):
        load(PreferencePair, f"tfds:{folder}")
    with pytest.raises(UserError, match="one of test, train; found 'dev'"):
        load(PreferencePair, f"tfds:{folder}#dev")
    with pytest.raises(RecordError, match=r"#test, row 1: field 'response'"):
        load(SftExample, f"tfds:{folder}#test")


def test_a_version_is_never_overwritten(tmp_path):
    folder = tfds_builder.build({"train": PAIRS[:2]}, "greetings", "1.0.0", tmp_path)
    with pytest.raises(UserError, match="choose another version"):
        tfds_builder.build({"train": PAIRS[2:4]}, "greetings", "1.0.0", tmp_path)
    assert load(PreferencePair, f"tfds:{folder}").records == PAIRS[:2]
    tfds_builder.build({"train": PAIRS[2:4]}, "greetings", "1.0.1", tmp_path)


@pytest.mark.parametrize(
    "splits, name, version, message",
    [
        ({"train": PAIRS}, "Greetings", "1.0.0", "name: expected lower-case"),
        ({"train": PAIRS}, "greetings", "1.0", "version: expected three numbers"),
        ({"train": PAIRS}, "greetings", "../../1.0.0", "version: expected"),
        ({"a-b": PAIRS}, "greetings", "1.0.0", "split: expected"),
        ({"train": []}, "greetings", "1.0.0", "split train: expected records"),
        ({}, "greetings", "1.0.0", "found none"),
        ({"train": [Prompt("写")], "test": PAIRS}, "greetings", "1.0.0", "one kind.*PreferencePair, Prompt"),
        ({"train": [Prompt("写"), Prompt("x", meta={"a": {1}})]}, "greetings", "1.0.0", "record 1: field 'meta'"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, splits, name, version, message):
    with pytest.raises(UserError, match=message):
        tfds_builder.build(splits, name, version, tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert not (tmp_path / "greetings" / "1.0.0").exists()


def test_a_folder_without_a_dataset_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no dataset_info\.json"):
        load(Prompt, f"tfds:{tmp_path}")


def test_tensorflow_is_never_imported(tmp_path):
    code = f"""
import sys
from rlaif_jax.data import tfds_builder
from rlaif_jax.data.records import Prompt
from rlaif_jax.data.sources import load
folder = tfds_builder.build({{"train": [Prompt("写")]}}, "greetings", "1.0.0", {str(tmp_path)!r})
assert load(Prompt, f"tfds:{{folder}}").records == [Prompt("写")]
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
