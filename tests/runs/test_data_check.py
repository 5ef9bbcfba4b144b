"""All data of a run is checked before its first stage: every mistake at once, and only of files that a stage reads."""

import dataclasses
import json

import pytest
from rich.console import Console

from rlaif_jax.config import ArmConfig, CurateConfig, DataConfig, DpoConfig, FeedbackConfig, HttpConfig, JudgeConfig, SourceConfig
from rlaif_jax.config.overrides import overridden
from rlaif_jax.config.stages import stages_of
from rlaif_jax.errors import UserError
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.data_check import check_data, files_read
from rlaif_jax.runs.folder import open_run
from rlaif_jax.stages import pipeline
from tests import tiny

QUIET = Console(quiet=True)
HTTP = FeedbackConfig(backend="http", http=HttpConfig("m", "http://127.0.0.1:1/v1", ""))


def _write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def _good(folder, **other):
    """Data without a fault for every part; `other` replaces files."""
    pairs = [{"prompt": f"写{i}", "chosen": f"好{i}", "rejected": f"坏{i}"} for i in range(40)]
    labelled = [{"prompt": f"评{i}", "response": f"答{i}", "label": i % 2} for i in range(180)]
    files = {
        "prompts": [{"prompt": f"请写{i}"} for i in range(30)], "eval_prompts": [{"prompt": f"再写{i}"} for i in range(9)],
        "sft": [{"prompt": f"问{i}", "response": f"答{i}"} for i in range(40)], "sft_val": [{"prompt": "另问", "response": "另答"}],
        "pairs_train": pairs[:30], "pairs_test": pairs[30:], "labelled_train": labelled[:60], "labelled_val": labelled[60:120],
        "labelled_test": labelled[120:],
    }  # fmt: skip
    _write(folder, **(files | other))


def _cfg(folder, *changes, **sections):
    cfg = dataclasses.replace(tiny.config(), data=DataConfig(root=str(folder)), **sections)
    return overridden(cfg, changes)


def _checked(tmp_path, cfg, names=None):
    run = open_run(tmp_path / "run", cfg, QUIET)
    stages = [s for n, s in stages_of(cfg).items() if names is None or n in names]
    return check_data(run, stages)


def test_good_data_has_no_problem_and_every_part_is_counted(tmp_path):
    _good(tmp_path / "data")
    found = _checked(tmp_path, _cfg(tmp_path / "data"))
    assert found.problems == []
    text = "\n".join(found.facts)
    for part in ("data.sft: 40 rows", "RL prompts: 27 to train on, 3 held out", "evaluation: 9 prompts",
                 "pairs: 30 for the reward model, 10 held out (0 more",
                 "the grader's labelled answers to train on: 30 good, 30 bad",
                 "characters in the median"):  # fmt: skip
        assert part in text, text


def test_every_mistake_is_told_at_once_before_the_first_stage(tmp_path, monkeypatch):
    pairs = [{"prompt": "写", "chosen": "好", "rejected": bad} for bad in (None, 7, "坏")]
    _good(tmp_path / "data", pairs_train=pairs,
          labelled_train=[{"prompt": "评", "response": "答", "label": "so so"}])  # fmt: skip
    for name in ("sft_val", "prompts"):
        (tmp_path / "data" / f"{name}.jsonl").unlink()
    monkeypatch.setattr(pipeline, "KINDS", {"tokenizer": lambda *_: pytest.fail("a stage began")})
    with pytest.raises(UserError) as error:
        pipeline.run(open_run(tmp_path / "run", _cfg(tmp_path / "data"), QUIET))
    text = str(error.value)
    for part in ("data.prompts: data file", "data.sft_eval: data file",
                 "data.sft_eval.path=''",
                 "pairs_train.jsonl:1: field 'rejected'", "the first of 2 bad rows; data.pairs.on_error=skip",
                 "labelled_train.jsonl:1: field 'label'"):  # fmt: skip
        assert part in text, text


CASES = [
    (dict(sft=[{"prompt": "问", "response": "答"}]), ["data.sft_eval.path="], "data.sft: all of its 1 rows have one prompt"),
    (dict(prompts=[{"prompt": "请写"}]), [], "data.prompts: it has one prompt"),
    ({}, ["rl.eval_prompts=0"], "rl.eval_prompts is 0"),
    (dict(eval_prompts=[{"prompt": f"请写{i}"} for i in range(5)]), [], "data.eval_prompts: each of its 5 prompts is also"),
    (dict(eval_prompts=[{"prompt": "问1"}, {"prompt": "写1"}]), [], "data.eval_prompts: each of its 2 prompts is also"),
    (dict(pairs_test=[{"prompt": "写1", "chosen": "好1", "rejected": "另"}]), [], "data.pairs_eval: each of the 1 held-out pairs"),
    (dict(labelled_train=[{"prompt": "问1", "response": "答1", "label": 1}] * 2), ["data.labelled_eval.path="],
     "data.labelled: all of its 2 rows have one prompt"),
    (dict(sft=[{"prompt": "评1", "response": "答1"}], labelled_train=[{"prompt": "评1", "response": "答1", "label": 1}]), [],
     "labelled answers to train on: none is left"),
]  # fmt: skip


@pytest.mark.parametrize("files, changes, message", CASES)
def test_small_data_is_refused_under_the_right_name(tmp_path, files, changes, message):
    _good(tmp_path / "data", **files)
    found = _checked(tmp_path, _cfg(tmp_path / "data", *changes))
    assert any(message in p for p in found.problems), found.problems


@pytest.mark.parametrize("change, name", [
    ("rl.max_prompt_tokens=3", "rl.max_prompt_tokens=3 tokens (the shortest"), ("sft.max_length=4", "sft.max_length=4 tokens"),
    ("reward.max_length=4", "data.pairs: 100.0% of the rows are longer than reward.max_length=4"),
    ("grader.max_length=4", "data.labelled: 100.0% of the rows are longer than grader.max_length=4"),
])  # fmt: skip
def test_texts_that_are_all_too_long_name_the_field_of_the_limit(tmp_path, change, name):
    _good(tmp_path / "data")
    cfg = _cfg(tmp_path / "data")
    pipeline.run(open_run(tmp_path / "made", cfg, QUIET), ["tokenizer"])
    found = _checked(tmp_path, overridden(cfg, [change, f"tokenizer.path={tmp_path / 'made' / 'tokenizer' / 'tokenizer'}"]))
    assert any(name in p for p in found.problems), found.problems
    assert not _checked(tmp_path / "again", cfg).problems


def test_only_files_that_a_stage_reads_are_asked_for(tmp_path):
    own = {"mine": ArmConfig(functions={"short": len})}
    cfg = _cfg(tmp_path, "tokenizer.path=/some", reward=None, grader=None, arms=own)
    run = open_run(tmp_path / "run", cfg, QUIET)
    stages = stages_of(cfg)
    assert files_read(run, [stages["mine"]]) == ["prompts"]
    assert files_read(run, stages.values()) == ["prompts", "eval_prompts", "sft", "sft_eval"]
    for change, expected in (
        (dict(grader=None), ["prompts", "eval_prompts", "sft", "sft_eval", "pairs", "pairs_eval"]),
        (dict(grader=None, reward=None, dpo=DpoConfig()), ["eval_prompts", "sft", "sft_eval", "pairs", "pairs_eval"]),
        (dict(grader=None, feedback=HTTP, curate=CurateConfig()), ["prompts", "eval_prompts", "sft", "sft_eval"]),
        (dict(feedback=HTTP, judge=JudgeConfig(), grader=None, reward=None),
         ["prompts", "eval_prompts", "sft", "sft_eval", "labelled", "labelled_eval"]),
    ):  # fmt: skip
        cfg = _cfg(tmp_path, **change)
        assert files_read(open_run(tmp_path / str(expected), cfg, QUIET), stages_of(cfg).values()) == expected, change


def test_without_sft_no_sft_file_is_read(tmp_path):
    _good(tmp_path / "data")
    (tmp_path / "data" / "sft.jsonl").unlink()
    cfg = _cfg(tmp_path / "data")
    object.__setattr__(cfg, "sft", None)  # the config itself wants weights to start from
    object.__setattr__(cfg, "tokenizer", dataclasses.replace(cfg.tokenizer, path="/some"))
    run = open_run(tmp_path / "run", cfg, QUIET)
    assert "sft" not in files_read(run, stages_of(cfg).values()) and RunData(run).held_out_pairs()


def test_few_labels_and_a_missing_class_are_told_before_the_game(tmp_path):
    rows = [{"prompt": f"评{i}", "response": f"答{i}", "label": i % 2} for i in range(60)]
    _good(tmp_path / "data", labelled_train=rows, labelled_val=[rows[1] | {"prompt": f"关{i}"} for i in range(60)],
          labelled_test=[rows[0] | {"prompt": "测"}])  # fmt: skip
    cfg = _cfg(tmp_path / "data", feedback=HTTP, judge=JudgeConfig(), grader=None)
    found = _checked(tmp_path, cfg)
    assert any("of the gate: all 60 are good" in p for p in found.problems)
    assert any("of the test: all 1 are bad" in w for w in found.warnings)
    _good(tmp_path / "data", labelled_test=rows[:20] and [r | {"prompt": r["prompt"] + "测"} for r in rows[:20]])
    assert any("of the test: only 20; below 50" in w for w in _checked(tmp_path, cfg).warnings)


def test_curated_pairs_are_enough(tmp_path):
    _good(tmp_path / "data")
    for name in ("pairs_train", "pairs_test"):
        (tmp_path / "data" / f"{name}.jsonl").unlink()
    run = open_run(tmp_path / "run", _cfg(tmp_path / "data", feedback=HTTP, curate=CurateConfig(), grader=None), QUIET)
    assert check_data(run, list(stages_of(run.cfg).values())).problems == []
    pipeline.run(run, ["tokenizer"])
    items = [{"prompt": f"请写{i}", "system": "", "examples": [], "debates": [],
              "pairs": [{"prompt": f"请写{i}", "chosen": "好", "rejected": "坏", "margin": 0.0}]} for i in range(20)]  # fmt: skip
    run.folder("curate").mkdir()
    (run.folder("curate") / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    run.mark_done("curate", 0.0, {})
    train, grader, held_out = RunData(run).pairs()
    assert (len(train), len(grader), len(held_out)) == (19, 0, 1)
    assert len(RunData(run).require_held_out_pairs()) == 1


def test_rows_of_chats_reach_the_grader_and_not_the_judge(tmp_path):
    turns = [{"role": "user", "content": "写"}, {"role": "assistant", "content": "好"}, {"role": "user", "content": "再短些"}]
    chats = [{"messages": [*turns, {"role": "assistant", "content": f"安{i}"}], "label": i % 2} for i in range(6)]
    _good(tmp_path / "data", labelled_train=[*chats, {"prompt": "评", "response": "答", "label": 1}])
    run = open_run(tmp_path / "run", _cfg(tmp_path / "data"), QUIET)
    data = RunData(run)
    assert len(data.labelled()[0]) == 7 and len(data.game_rows()[0]) == 1


def test_labelled_rows_of_the_gate_are_in_no_other_part(tmp_path):
    shared = {"prompt": "评", "response": "同", "label": 1}
    others = [{"prompt": f"甲{i}", "response": "乙", "label": 0} for i in range(3)]
    gate = [shared, {"prompt": "问3", "response": "答3", "label": 0}, {"prompt": "关", "response": "新", "label": 0}]
    _good(tmp_path / "data", labelled_train=[shared, *others], labelled_val=gate)
    gate = RunData(open_run(tmp_path / "run", _cfg(tmp_path / "data"), QUIET)).game_rows()[1]
    assert [r.prompt for r in gate] == ["关"]


def test_rl_prompts_are_set_apart_by_prompt(tmp_path):
    prompts = [{"prompt": f"请写{i % 20}"} for i in range(40)] + [{"prompt": "请写19", "system": "另"}]
    again = [{"prompt": "再写"}, {"prompt": "再写", "system": "另"}, {"prompt": "再写"}]
    _good(tmp_path / "data", prompts=prompts, eval_prompts=again)
    data = RunData(open_run(tmp_path / "run", _cfg(tmp_path / "data"), QUIET))
    train, held_out, facts = data.rl_prompts(8)
    assert facts == {"prompts": 38, "held_out": 3}
    assert not {(r.system, r.prompt) for r in train} & {(r.system, r.prompt) for r in held_out}
    assert [(r.prompt, r.system) for r in data.eval_prompts()] == [("再写", ""), ("再写", "另")]


@pytest.mark.parametrize("change, message", [("limit=-1", "limit"), ("format=csv", "format"), ("on_error=ignore", "on_error")])
def test_settings_of_a_source_are_checked_with_the_config(tmp_path, change, message):
    with pytest.raises(UserError, match=f"{message}.*expected|{message}.*known"):
        _cfg(tmp_path, f"data.sft.{change}")
    assert SourceConfig(format="chat", on_error="skip", limit=3)
