"""Every example of docs/data.md is read, and those of one field give the same records."""

import re
from pathlib import Path

import pytest

from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, RecordError, SftExample
from rlaif_jax.data.sources import load

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"```(jsonl|json|csv) ([\w-]+)( refused)?\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
KINDS = {"prompts": Prompt, "sft": SftExample, "sft-chat": SftExample, "pairs": PreferencePair, "labelled": LabelledResponse}


@pytest.mark.parametrize("field", KINDS)
def test_all_forms_of_a_field_give_the_same_records(tmp_path, field):
    found = []
    for number, (suffix, name, refused, text) in enumerate(BLOCKS):
        if name == field and not refused:
            path = tmp_path / f"{number}.{suffix}"
            path.write_text(text, encoding="utf-8")
            found.append(load(KINDS[field], path).records)
    assert len(found) >= 2 and all(records == found[0] for records in found)


def test_what_the_page_calls_refused_is_refused(tmp_path):
    (refused,) = [block for block in BLOCKS if block[2]]
    lines = refused[3].splitlines()
    for number, line in enumerate(lines):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(line, encoding="utf-8")
        with pytest.raises(RecordError):
            load(SftExample, path)
    assert len(lines) == 6
