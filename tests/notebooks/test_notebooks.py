"""Every notebook runs from top to bottom, with fewer steps."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
QUICK = """
OUT = {out!r}
SFT_STEPS, REWARD_STEPS, RL_STEPS, FEEDBACK_STEPS = 4, 4, 2, 4
TRANSCRIPTS, VERDICT_PAIRS, ROUNDS = 100, 60, 1
REFLECTIONS, EDITS = 4, 2
REWARD_LENGTH = 256  # an untrained policy writes bytes that take many tokens to read back
CORPUS = {{"sft": 300, "pairs": 200, "labelled": 60, "rl_prompts": 100, "eval_prompts": 20}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.name)
def test_notebook_runs(path, tmp_path):
    book = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in book.cells), "commit notebooks without outputs"
    (parameters,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = QUICK.format(out=str(tmp_path / "run"))
    NotebookClient(book, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(o.get("text", "") for c in book.cells if c.cell_type == "code" for o in c.outputs)
    assert "请求" in printed
    result = {"01_quickstart": "report/report.html", "02_judge": "principles/principles.txt"}[path.stem]
    assert (tmp_path / "run" / result).exists()
