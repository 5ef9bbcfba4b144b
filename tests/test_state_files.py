"""State files: written completely or not at all, and any change of them is noticed."""

import json
import os
import random

import pytest

from rlaif_jax import state_files
from rlaif_jax.errors import UserError

VALUES = {"version": 2, "seconds": 12.5, "note": "祝福", "list": [1, None, float("nan")], "step": 1200}


def _same(a, b) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def test_what_is_written_is_read(tmp_path):
    state_files.write_state(tmp_path / "new" / "done.json", VALUES)
    assert _same(state_files.read_state(tmp_path / "new" / "done.json"), VALUES)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["done.json"], "no temporary file is left"


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "done.json"
    state_files.write_state(path, VALUES)
    whole = path.read_bytes()
    bits = [(at, bit) for at in range(len(whole)) for bit in range(8)]
    spoiled = [bytes([*whole[:at], whole[at] ^ (1 << bit), *whole[at + 1 :]]) for at, bit in bits]
    spoiled += [whole[:size] for size in range(len(whole))] + [b"null", b"[]", b"3", b"\x00" * len(whole)]
    for content in spoiled:
        path.write_bytes(content)
        try:
            found = state_files.read_state(path)
        except UserError as error:
            assert str(path) in str(error)
        else:  # such as 1e-05 written as 1E-05
            assert _same(found, VALUES), content


def test_a_file_of_an_earlier_version_has_no_checksum_and_is_read(tmp_path):
    path = tmp_path / "done.json"
    for old in ({"seconds": 3.0}, {"version": 1, "seconds": 3.0}):
        path.write_text(json.dumps(old))
        assert state_files.read_state(path) == old
    for changed in ({"version": 2, "seconds": 3.0}, {"version": "2", "seconds": 3.0}, {"seconds": 3.0, "checksum": "00000000"}):
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match="checksum does not fit"):
            state_files.read_state(path)


def test_a_write_that_fails_leaves_the_old_file_and_says_why(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    state_files.write_text(path, "old")

    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"config\.json cannot be written: No space left on device; free some space"):
        state_files.write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_lines_end_at_newlines_alone_and_a_bad_one_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"step": 1, "text": "a\u2028b\x85c"}, {"step": 2}]
    state_files.write_rows(path, rows)
    with path.open("a") as file:
        file.write('{"step": 3, "te')  # a process was killed here
    assert state_files.read_rows(path) == rows and state_files.read_rows(tmp_path / "none.jsonl") == []
    for bad in (b"\xff\xfe\n", b"[1]\n", b"{}}\n", b"[" * 100_000 + b"\n", b'{"n": ' + b"9" * 5000 + b"}\n"):
        path.write_bytes(b'{"step": 1}\n' + bad + b'{"step": 3}\n')
        with pytest.raises(UserError, match=r"rows\.jsonl:2 is damaged"):
            state_files.read_rows(path)


def test_a_changed_lost_or_emptied_file_of_a_folder_is_named(tmp_path):
    for name in ("a.txt", "sub/b.txt", "left/c.txt", ".a.txt.7.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    noted = state_files.digests(tmp_path, ["left"])
    assert sorted(noted) == ["a.txt", "sub/b.txt"]
    rng = random.Random(0)
    for name in noted:
        whole = (tmp_path / name).read_bytes()
        at = rng.randrange(len(whole))
        for content in (b"", whole[:-1], whole + b"x", bytes([*whole[:at], whole[at] ^ 4, *whole[at + 1 :]])):
            (tmp_path / name).write_bytes(content)
            assert f"{tmp_path / name} is damaged" in state_files.difference(tmp_path, noted, state_files.digests(tmp_path))
        (tmp_path / name).unlink()
        assert state_files.difference(tmp_path, noted, state_files.digests(tmp_path)) == f"{tmp_path / name} is missing"
        (tmp_path / name).write_bytes(whole)
    assert state_files.difference(tmp_path, noted, state_files.digests(tmp_path)) == ""
