"""A changed field costs only the stages that have used it."""

import dataclasses

import pytest
from rich.console import Console

from rlaif_jax.config import ArmConfig, CurateConfig, FeedbackConfig, HttpConfig, JudgeConfig
from rlaif_jax.config.overrides import overridden
from rlaif_jax.errors import UserError
from rlaif_jax.runs.changes import changed_fields
from rlaif_jax.runs.folder import open_run
from tests import tiny

QUIET = Console(quiet=True)
FEEDBACK = FeedbackConfig(backend="http", http=HttpConfig("m", "http://127.0.0.1:1/v1", ""))


def _run(tmp_path, *done: str, begun: tuple[str, ...] = ()):
    """A run folder in which these stages are done, or have left a file."""
    arms = {"rl": ArmConfig(reward_model=1.0), "judged": ArmConfig(judge=1.0)}
    cfg = dataclasses.replace(
        tiny.config(), feedback=FEEDBACK, judge=JudgeConfig(), curate=CurateConfig(source="llm"), arms=arms
    )
    cfg = overridden(cfg, ["data.root=/data"])
    x = open_run(tmp_path / "run", cfg, QUIET)
    for name in done:
        x.mark_done(name, 0.0, {})
    for name in begun:
        (x.folder(name)).mkdir()
        (x.folder(name) / "begun.json").write_text("{}")
    return cfg


BEFORE_REWARD = ("tokenizer", "sft", "curate")
FREE = [
    (BEFORE_REWARD, "data.pairs.path=mended.jsonl"),
    (BEFORE_REWARD, "data.pairs_eval.path="),
    (BEFORE_REWARD, "reward.train.steps=9"),
    (BEFORE_REWARD, "rl.train.steps=9"),
    (BEFORE_REWARD, "data.labelled.format=labelled"),
    (BEFORE_REWARD, "feedback.http.base_url=http://127.0.0.1:2/v1"),
    (BEFORE_REWARD, "feedback.http.timeout=5"),
    ((*BEFORE_REWARD, "reward"), "data.labelled.path=mended.csv"),
    ((*BEFORE_REWARD, "reward", "rl"), "judge.mode=binary"),
    ((*BEFORE_REWARD, "reward", "rl"), "arms.judged.judge=0.5"),
    ((*BEFORE_REWARD, "reward", "rl", "judged"), "evaluation.best_of=4"),
    ((*BEFORE_REWARD, "reward", "rl", "judged", "evaluate", "report"), "logging.wandb_project=x"),
    ((), "seed=9"),
]  # fmt: skip


@pytest.mark.parametrize("done, change", FREE)
def test_a_field_that_no_stage_has_used_may_change(tmp_path, done, change):
    cfg = overridden(_run(tmp_path, *done), [change])
    assert open_run(tmp_path / "run", cfg, QUIET).cfg == cfg
    assert open_run(tmp_path / "run").cfg == cfg, "the folder holds the new config"


USED = [
    (("tokenizer",), "data.sft.path=other.jsonl", "tokenizer has used"),
    (BEFORE_REWARD, "sft.train.steps=9", "sft has used"),
    (BEFORE_REWARD, "seed=9", "tokenizer, sft, curate have used"),
    (BEFORE_REWARD, "data.root=/other", "tokenizer, sft, curate have used"),
    (BEFORE_REWARD, "data.prompts.path=other.jsonl", "curate has used"),
    (BEFORE_REWARD, "feedback.http.model=other", "curate has used"),
    ((*BEFORE_REWARD, "reward"), "data.pairs.path=other.jsonl", "reward has used"),
    ((*BEFORE_REWARD, "reward", "rl"), "rl.train.steps=9", "rl has used"),
    ((*BEFORE_REWARD, "reward", "rl"), "arms.rl.reward_model=0.5", "rl has used"),
    ((*BEFORE_REWARD, "reward", "rl", "judged", "evaluate"), "evaluation.limit=4", "evaluate has used"),
]  # fmt: skip


@pytest.mark.parametrize("done, change, message", USED)
def test_a_field_that_a_stage_has_used_may_not(tmp_path, done, change, message):
    cfg = _run(tmp_path, *done)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UserError, match=f"{change.split('=')[0]}.*{message}"):
        open_run(tmp_path / "run", overridden(cfg, [change]), QUIET)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_the_message_names_the_folders_of_all_stages_to_do_again(tmp_path):
    cfg = _run(tmp_path, *BEFORE_REWARD, "reward", "rl")
    with pytest.raises(UserError) as error:
        open_run(tmp_path / "run", overridden(cfg, ["curate.candidates=8"]), QUIET)
    assert str(error.value).endswith(f"move {', '.join(str(tmp_path / 'run' / n) for n in ('curate', 'reward', 'rl'))} away")


def test_a_stage_that_failed_before_it_began_has_used_nothing(tmp_path):
    cfg = overridden(_run(tmp_path, "tokenizer", begun=("sft",)), ["data.sft_eval.path=mended.jsonl"])
    open_run(tmp_path / "run", cfg, QUIET)
    (tmp_path / "run" / "sft" / "metrics.jsonl").write_text("{}")
    with pytest.raises(UserError, match="sft has used"):
        open_run(tmp_path / "run", overridden(cfg, ["data.sft_eval.path=again.jsonl"]), QUIET)


def test_the_tokenizer_of_a_folder_has_read_no_data(tmp_path):
    cfg = overridden(tiny.config(), ["tokenizer.path=/some/folder"])
    open_run(tmp_path / "run", cfg, QUIET).mark_done("tokenizer", 0.0, {})
    again = open_run(tmp_path / "run", overridden(cfg, ["data.sft.limit=5"]), QUIET)
    assert again.is_done("tokenizer") and again.cfg.data.sft.limit == 5


def test_changed_fields_are_named_by_their_path():
    cfg = tiny.config()
    assert changed_fields(cfg, overridden(cfg, ["data.pairs.path=x", "seed=4"])) == ["data.pairs.path", "seed"]
    assert changed_fields(cfg, dataclasses.replace(cfg)) == []
