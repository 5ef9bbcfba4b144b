"""Every parameter of every preset lies where the golden tables say; see golden_tables.py for how to write them anew."""

import difflib

import pytest

from rlaif_jax.models.model_config import PRESETS
from tests.sharding import golden_tables


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_lie_where_the_golden_table_says(preset):
    path = golden_tables.path(preset)
    assert path.exists(), f"{path} is missing: python -m tests.sharding.golden_tables"
    golden, found = path.read_text(encoding="utf-8"), golden_tables.table(preset)
    if golden != found:
        diff = difflib.unified_diff(golden.splitlines(), found.splitlines(), path.name, "as the code has it now", lineterm="", n=1)
        pytest.fail("\n".join([*diff, "intended? python -m tests.sharding.golden_tables, and read the diff"]), pytrace=False)


def test_there_is_no_table_of_a_preset_that_is_gone():
    assert {p.stem for p in golden_tables.FOLDER.glob("*.txt")} == set(PRESETS)
