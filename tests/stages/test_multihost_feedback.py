"""AI feedback on two processes: a chat API is asked once for all, and a model on the mesh is led by process 0."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from rlaif_jax.config import load_config
from rlaif_jax.runs.folder import open_run
from rlaif_jax.stages import pipeline
from tests.feedback.fake_api import FakeApi
from tests.processes import ended, launch

pytestmark = pytest.mark.slow
QUIET = Console(quiet=True)
HEAD = """
import dataclasses

from rlaif_jax.config import FeedbackConfig, JudgeConfig
from rlaif_jax.feedback.principle_game import GameConfig
from rlaif_jax.feedback.curate import CurateConfig
from rlaif_jax.feedback.http_config import HttpConfig
from tests import tiny


def config():
    small = tiny.config(steps=2, checkpoint_every=2)
    return dataclasses.replace(small, grader=None, {parts})
"""
HTTP = """
        feedback=FeedbackConfig(backend="http", http=HttpConfig("m", {url!r}, "", concurrency=8, timeout=20.0)),
        curate=CurateConfig(prompts=8, source="llm", examples=2, chunk=4),
        judge=JudgeConfig(principles="principles_general", game=GameConfig(rounds=1, games=2, reflections=2))
"""
EMBEDDED = """
        feedback=FeedbackConfig(train=small.sft.train, max_length=192, pair_max_length=320, transcripts=60, verdict_pairs=40,
                                questions=2, pair_batch_size=8, batch_size=16),
        judge=JudgeConfig(game=GameConfig(rounds=1, games=2, reflections=2)),
        curate=CurateConfig(prompts=4, candidates=2, max_tokens=8, reply_tokens=16, chunk=2)
"""


def _config(folder: Path, parts: str) -> Path:
    path = folder / "config.py"
    path.write_text(HEAD.format(parts=parts), encoding="utf-8")
    return path


def _rounds(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "judge" / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


def _flat(value, path: str = "") -> dict:
    """Every number and text of a report by its path."""
    if not isinstance(value, (dict, list)):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, part in items for name, leaf in _flat(part, f"{path}/{key}").items()}


def test_a_whole_run_with_a_chat_api_pays_once_and_reports_the_same(tmp_path):
    api, reports, found = FakeApi(), [], []
    config = _config(tmp_path, HTTP.format(url=api.url))
    ended(launch(config, tmp_path / "two", "run", devices=1, mesh=()))
    billed = dict(api.billed)
    assert billed and max(times for *_, times in billed.values()) == 1, "nothing is asked twice"
    cfg = load_config(config)
    pipeline.run(open_run(tmp_path / "one", cfg, QUIET))
    api.close()
    for name in ("two", "one"):
        out = tmp_path / name
        found.append((out / "curate" / "items.jsonl").read_text(encoding="utf-8"))
        reports.append(json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))["rows"])
    assert found[0] == found[1] and len(found[0].splitlines()) == 8
    assert _rounds(tmp_path / "two") == _rounds(tmp_path / "one")
    assert "rl_judge" in reports[0]
    assert _flat(reports[0]) == pytest.approx(_flat(reports[1]), abs=1e-6, nan_ok=True), "two devices sum in another order"


def test_an_embedded_judge_is_led_and_its_mistakes_reach_every_process(tmp_path):
    config = _config(tmp_path, EMBEDDED)
    cfg = load_config(config)
    x = open_run(tmp_path / "one", cfg, QUIET)
    names = ("tokenizer", "sft", "feedback", "judge")
    pipeline.run(x, names)
    for stage in (["tokenizer"], ["sft"], ["feedback"], ["judge", "optimize"]):
        ended(launch(config, tmp_path / "two", *stage, devices=2, mesh=()))
    one, two = _rounds(tmp_path / "one"), _rounds(tmp_path / "two")
    assert [r.keys() for r in one] == [r.keys() for r in two]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, abs=1e-3, nan_ok=True)
    # After two steps no debate of this model can be read, so curation must fail: on all processes, and none may hang.
    said = ended(launch(config, tmp_path / "two", "curate", devices=2, mesh=()), 2)
    assert "gave no valid verdict" in said or "curation found no pair" in said
    assert (tmp_path / "two" / "curate" / "items.jsonl").exists()
