"""The estimate of requests, tokens and money, against what a run really asks."""

import dataclasses
import io

import pytest
from rich.console import Console

from rlaif_jax.config import FeedbackConfig, HttpConfig, JudgeConfig
from rlaif_jax.feedback.curate import CurateConfig
from rlaif_jax.feedback.principle_game import GameConfig
from rlaif_jax.plan.estimate import print_plan
from rlaif_jax.plan.requests import DataCounts, corpus_counts, estimate_requests
from tests import tiny

COUNTS = DataCounts(prompts=80, eval_prompts=16, gate=10, labelled_test=20, pairs_eval=30)


def config(mode: str = "soft", **more):
    http = HttpConfig("m", "http://h/v1", "", price_prompt=1.0, price_completion=2.0)
    return dataclasses.replace(
        tiny.config(steps=6, checkpoint_every=3), feedback=FeedbackConfig(backend="http", http=http),
        curate=CurateConfig(prompts=12, source="llm", candidates=4, max_tokens=32, reply_tokens=64),
        judge=JudgeConfig(principles="principles_general", game=GameConfig(2, 2, 1), mode=mode), **more,
    )  # fmt: skip


def by_stage(cfg) -> dict:
    return {row.stage: row for row in estimate_requests(cfg, COUNTS)}


def test_requests_of_each_stage_are_counted():
    found = by_stage(config())
    assert list(found) == ["curate", "principles", "rl_judge", "evaluate"]
    assert found["curate"].requests == 12 * 4 * (1 + 4)
    judged = 10 * (1 + 2 * (1 + 3)) + 2 * 20 + 2 * (2 + 8)
    assert found["principles"].requests == judged + 2 * (2 + 3 + 3)
    assert found["rl_judge"].requests == 8 * 4 * (6 + 1 * 2), "six steps, and two looks at one batch of held-out prompts"
    systems = len(("base", "sft", "rl", "rl_judge"))
    assert found["evaluate"].requests == systems * 16 + 20 + 2 * 30
    for row in found.values():
        assert row.money == pytest.approx((row.prompt_tokens + 2 * row.completion_tokens) / 1e6) and row.money > 0


def test_comparisons_and_debates_of_the_evaluation_are_counted():
    plain, cfg = by_stage(config())["evaluate"].requests, config()
    debates = by_stage(dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, debate=5)))["evaluate"].requests
    assert debates == plain + 4 * 5 * 4, "four systems, five prompts, four requests"
    wins = by_stage(dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, win_rates=5)))["evaluate"].requests
    assert wins == plain + 2 * 5 * (6 + 4), "six pairs of systems and four against the data, in both orders"


def test_modes_of_the_judge_ask_more_or_less():
    soft = by_stage(config())["rl_judge"].requests
    assert by_stage(config("k_vote"))["rl_judge"].requests == 3 * soft
    assert by_stage(config("pairwise"))["rl_judge"].requests == 2 * soft
    pairs = config("pairwise", rl=dataclasses.replace(config().rl, group_size=2))
    assert by_stage(pairs)["rl_judge"].requests == soft // 2, "a group of two has one match, asked in both orders"
    assert by_stage(config("checklist"))["rl_judge"].requests % soft == 0


def test_a_config_that_asks_nobody_has_no_estimate():
    assert estimate_requests(tiny.config(), COUNTS) == []


def test_the_dry_run_shows_requests_and_money_and_says_when_the_data_is_missing(tmp_path):
    console = Console(record=True, width=200, file=io.StringIO())
    cfg = config()
    print_plan(cfg, console)
    shown = console.export_text(clear=True)
    whole = estimate_requests(cfg, corpus_counts(cfg))
    assert f"{sum(row.requests for row in whole):,}" in shown and "money" in shown
    data = dataclasses.replace(cfg.data, root=str(tmp_path))
    print_plan(dataclasses.replace(cfg, data=data), console)
    assert "not known without the data" in console.export_text()
