"""What a run gives to which model: nothing that would let one grade its own lessons."""

import dataclasses
import json

import pytest
from rich.console import Console

from rlaif_jax.config import DataConfig, SourceConfig
from rlaif_jax.errors import UserError
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import open_run
from tests import tiny


def _data(tmp_path, **more):
    pairs = [{"prompt": f"请求{i}", "chosen": f"好{i}", "rejected": f"坏{i}"} for i in range(20)]
    labelled = [{"prompt": f"请求{i}", "response": f"好{i}", "label": 1} for i in range(5)]
    labelled += [{"prompt": f"新请求{i}", "response": f"新{i}", "label": i % 2} for i in range(10)]
    sft = [{"prompt": "新请求0", "response": "新0"}]
    for name, rows in (("pairs_train", pairs[:16]), ("pairs_test", pairs[16:]), ("labelled_train", labelled), ("sft", sft)):
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    data = DataConfig(root=str(tmp_path), labelled_eval=SourceConfig(), eval_fraction=0.2, **more)
    cfg = dataclasses.replace(tiny.config(), data=data)
    return RunData(open_run(tmp_path / "run", cfg, Console(quiet=True)))


def test_the_grader_gets_prompts_that_the_reward_model_never_saw(tmp_path):
    data = _data(tmp_path, grader_share=0.25)
    reward, grader, held_out = data.pairs()
    assert (len(reward), len(grader), len(held_out)) == (12, 4, 4)
    assert not {p.prompt for p in reward} & {p.prompt for p in grader}
    train, test = data.labelled()
    assert {r.prompt for r in train} == {p.prompt for p in grader} and {r.prompt for r in test} == {p.prompt for p in held_out}
    assert sum(r.label for r in train) == len(train) / 2


def test_labelled_rows_that_stand_in_training_files_are_left_out(tmp_path):
    train, test = _data(tmp_path).labelled()
    kept = {r.response for r in [*train, *test]}
    assert kept == {f"新{i}" for i in range(1, 10)}
    assert not {r.prompt for r in train} & {r.prompt for r in test}


def test_a_share_that_is_none_is_refused():
    with pytest.raises(UserError, match="grader_share"):
        DataConfig(grader_share=1.0)
