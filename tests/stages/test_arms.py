"""Both arms of AI feedback through the whole pipeline, with a chat API that a test serves."""

import dataclasses
import json

import pytest
from rich.console import Console

from rlaif_jax.cli import main
from rlaif_jax.config import EvaluationConfig, FeedbackConfig, JudgeConfig, SamplingConfig
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.curate import CurateConfig
from rlaif_jax.feedback.http_config import HttpConfig
from rlaif_jax.feedback.principle_game import GameConfig
from rlaif_jax.runs.folder import open_run
from rlaif_jax.stages import pipeline
from rlaif_jax.trainers.optimizer import OptimizerConfig
from tests import tiny
from tests.feedback.fake_api import FakeApi

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of all stages, its config file and the API."""
    api = FakeApi(fault_rate=0.1, hang=0.3)
    cfg = dataclasses.replace(
        tiny.config(steps=3, checkpoint_every=3), grader=None,
        feedback=FeedbackConfig(backend="http", http=HttpConfig("m", api.url, "", concurrency=8, timeout=0.5, attempts=12)),
        curate=CurateConfig(prompts=12, source="llm", examples=2, chunk=6),
        judge=JudgeConfig(principles="principles_general", game=GameConfig(rounds=2, games=2, reflections=2)),
        evaluation=EvaluationConfig(batch_size=8, sampling=SamplingConfig(max_tokens=12), win_rates=4, debate=6),
    )  # fmt: skip
    experiment = open_run(tmp_path_factory.mktemp("arms") / "run", cfg, QUIET)
    pipeline.run(experiment)
    yield experiment, api
    api.close()


def test_the_report_holds_four_systems_the_rounds_and_a_debate(run):
    experiment, _ = run
    report = json.loads((experiment.folder("report") / "report.json").read_text(encoding="utf-8"))
    assert list(report["rows"]) == ["base", "sft", "rl", "rl_judge"]
    for row in report["rows"].values():
        assert {"excellent", "reward", "judge", "judge_p", "debate"} <= set(row)
        assert row["debate"]["n"] + row["debate"]["missing"] == 6, "it does not apply to the other prompts"
    assert {f["system"] for f in report["flags"]} == {"rl", "rl_judge"}
    assert report["own_signals"] == {"rl": ["reward"], "rl_judge": ["judge"]}
    compared = {(w["a"], w["b"], w["by"]) for w in report["wins"]}
    assert {("rl", "sft", "judge"), ("rl_judge", "rl", "judge"), ("rl_judge", "data", "reward")} <= compared
    costs = next(t for t in report["tables"] if t["title"].startswith("What each arm cost"))
    lines = {row[0]: dict(zip(costs["columns"], row, strict=True)) for row in costs["rows"]}
    assert lines["rl"]["preference pairs"].endswith("of them curated)") and lines["rl_judge"]["preference pairs"] == "0"
    assert int(lines["rl"]["LLM requests"].split()[0]) > 0 and lines["rl_judge"]["labelled answers"] != "0"
    html = (experiment.folder("report") / "report.html").read_text(encoding="utf-8")
    for text in ("One debate", "judge&#39;s principles, round by round", "Both AI graders", "What each arm cost",
                 "Win rates", "Graders against held-out labels"):
        assert text in html, text


def test_curated_pairs_train_the_reward_model(run):
    experiment, _ = run
    items = [json.loads(x) for x in (experiment.folder("curate") / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = sum(len(i["pairs"]) for i in items)
    assert len(items) == 12 and all(len(i["examples"]) == 2 for i in items)
    assert experiment.facts("curate")["pairs"] == pairs and experiment.facts("reward")["examples"] == pairs > 0


def test_the_game_leaves_versions_and_figures(run):
    experiment, _ = run
    facts, folder = experiment.facts("principles"), experiment.folder("principles")
    assert len((folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert (folder / "principles" / "v000.txt").exists() and (folder / "diff.txt").exists()
    assert 0 <= facts["test_balanced_accuracy_before"] <= 1


def test_the_judges_reward_is_what_the_policy_got(run):
    experiment, _ = run
    rows = [json.loads(x) for x in (experiment.folder("rl_judge") / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:  # the served judge gives .25 where it reads 坏, else .75; an unfinished answer loses 1
        said = 0.25 if "坏" in row["prompt"] + row["response"] else 0.75
        said = 0.0 if "<|" in row["response"] else said  # a control token is a plea, and nobody is asked
        expected = said - (0 if row["finished"] else 1.0)
        assert row["reward"] == pytest.approx(expected, abs=1e-3)


def test_nothing_is_paid_twice_over_the_whole_run(run):
    experiment, api = run
    stages = ("curate", "principles", "rl_judge", "evaluate")
    spending = [experiment.facts(stage)["spending"] for stage in stages]
    assert sum(s["requests"] for s in spending) == len(api.billed) and all(s["requests"] for s in spending)
    assert (sum(s["prompt_tokens"] for s in spending), sum(s["completion_tokens"] for s in spending)) == api.tokens()
    assert max(times for *_, times in api.billed.values()) == 1
    assert "spending" not in experiment.facts("sft")


def test_a_file_is_rated(run, tmp_path, capsys):
    experiment, _ = run
    path = tmp_path / "answers.jsonl"
    rows = [{"query": "写祝福", "response": "好话"}, {"query": "写祝福", "response": "坏话"}]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    command = ["judge", "score", str(path), "--run", str(experiment.out)]
    assert main(command) == 0
    rated = [json.loads(x) for x in (tmp_path / "answers.jsonl.rated.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["p_good"] for r in rated] == [0.75, 0.25]
    assert "50.0% good" in capsys.readouterr().out
    assert main(command) == 2 and "exists already" in capsys.readouterr().err


def test_configs_that_cannot_work_are_refused():
    cfg = tiny.config()
    with pytest.raises(UserError, match="feedback is not: set the section"):
        dataclasses.replace(cfg, curate=CurateConfig())
    with pytest.raises(UserError, match="judge section"):
        dataclasses.replace(cfg, feedback=FeedbackConfig())
    with pytest.raises(UserError, match="backend"):
        FeedbackConfig(backend="telepathy")
    with pytest.raises(UserError, match="mode"):
        JudgeConfig(mode="coin")


@pytest.mark.slow
def test_the_embedded_model_trains_and_answers(tmp_path):
    """A few steps of the real thing; that it becomes good is for the demo to show."""
    small = tiny.config(steps=2, checkpoint_every=2)
    train = dataclasses.replace(small.sft.train, optimizer=OptimizerConfig(1e-3))
    cfg = dataclasses.replace(
        small, grader=None, feedback=FeedbackConfig(train=train, max_length=192, pair_max_length=320, transcripts=60,
                                                    verdict_pairs=40, questions=2, pair_batch_size=8, batch_size=16),
        reward=dataclasses.replace(small.reward, init="feedback"),
        judge=JudgeConfig(game=GameConfig(rounds=1, games=1, reflections=1)),
    )  # fmt: skip
    experiment = open_run(tmp_path / "run", cfg, QUIET)
    stages = ("tokenizer", "sft", "feedback", "reward", "principles", "rl_judge")
    pipeline.run(experiment, stages)
    assert 0 <= experiment.facts("feedback")["eval/accuracy"] <= 1
    assert experiment.facts("principles")["n"] > 0 and experiment.is_done("rl_judge")
