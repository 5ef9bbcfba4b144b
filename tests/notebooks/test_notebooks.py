"""Every notebook runs from top to bottom, with fewer steps, shows pictures, and stops where it is asked to."""

import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from tests import hf

FOLDER = Path(__file__).parents[2] / "notebooks"
QUICK = """
OUT = {out!r}
SFT_STEPS, REWARD_STEPS, RL_STEPS, FEEDBACK_STEPS = 4, 4, 2, 4
TRANSCRIPTS, VERDICT_PAIRS, ROUNDS = 100, 60, 1
REFLECTIONS, EDITS, GATE_ROWS = 4, 2, 60
REWARD_LENGTH = 256  # an untrained policy writes bytes that take many tokens to read back
CORPUS = {{"sft": 300, "pairs": 200, "labelled": 60, "rl_prompts": 100, "eval_prompts": 20}}
MODEL, PROMPTS_CSV, STEPS, PROMPTS_PER_STEP, GROUP_SIZE, MAX_TOKENS = {model!r}, "", 2, 4, 2, 8
PRINCIPLES = "names one concrete benefit | at most twelve words"
API_MODEL, API_URL, BUDGET, PRICE_PROMPT, PRICE_COMPLETION = "", "", 1.0, 1.0, 4.0
KEEP_ON_DRIVE = True
"""
RESULTS = {"01_quickstart": "report/report.html", "02_judge": "principles/principles.txt", "03_own_model": "report/report.html"}


def _book(path, tmp_path, model=""):
    book = nbformat.read(path, as_version=4)
    (parameters,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = QUICK.format(out=str(tmp_path / "run"), model=model)
    return book


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_need_no_edit_and_hold_no_outputs(path):
    book = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in book.cells), "commit notebooks without outputs"
    code = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    assert "#@title" in code and "#@param" in code and "import *" not in code
    assert "results_folder(" in code and 'OUT = None' in code


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.name)
def test_notebook_runs(path, tmp_path):
    model = str(hf.instruct_folder(tmp_path / "model")) if path.stem == "03_own_model" else ""
    book = _book(path, tmp_path, model)
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output["data"] for output in outputs if "data" in output]
    assert any("image/png" in data for data in shown), "a plot is a picture, not its repr"
    assert all("image/png" in data for data in shown if "<Figure" in data.get("text/plain", ""))
    assert (tmp_path / "run" / RESULTS[path.stem]).exists()


@pytest.mark.slow
def test_stop_saves_and_the_cell_resumes(tmp_path):
    """The stop button sends SIGINT to the kernel; nothing goes on in the background, and the stage is saved."""
    book = _book(FOLDER / "01_quickstart.ipynb", tmp_path)
    book.cells[2].source += "SFT_STEPS = 100000\nCORPUS['sft'] = 2000\n"
    cells = [c.source for c in book.cells if c.cell_type == "code"]
    sft = next(i for i, source in enumerate(cells) if 'watch(run, "sft"' in source)
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        for source in cells[:sft]:
            assert client.execute_interactive(source, timeout=300, output_hook=lambda m: None)["content"]["status"] == "ok"
        metrics, checkpoints = tmp_path / "run/sft/metrics.jsonl", tmp_path / "run/sft/checkpoints"
        client.execute(cells[sft])
        until = time.monotonic() + 200
        while not (metrics.exists() and metrics.read_text()) and time.monotonic() < until:
            time.sleep(0.5)
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=200)
        assert reply["content"]["status"] == "error" and reply["content"]["ename"] == "Interrupted", reply["content"]
        assert "is saved at step" in reply["content"]["evalue"] and any(checkpoints.iterdir())
        written = metrics.read_text()
        time.sleep(3)
        assert metrics.read_text() == written, "nothing trains on unseen"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
