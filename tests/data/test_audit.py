"""The audit finds planted leaks and give-aways, and nothing where there is nothing."""

import json
import os
from pathlib import Path

import pytest

from rlaif_jax.data.audit import audit, best_length_threshold, length_audit, without_leaks
from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, SftExample
from rlaif_jax.data.sources import load

PAIRS = [
    PreferencePair("写春", "春暖花开", "春"),
    PreferencePair("写秋", "秋高气爽", "秋"),
    PreferencePair("写冬", "冬", "冬去春来"),
]
SFT = [SftExample("写夏", "夏日清凉"), SftExample("写夏", "夏日清凉")]
LABELLED = [
    LabelledResponse("写春", "春暖花开", 1),  # a chosen one of PAIRS
    LabelledResponse("写秋", "秋", 0),  # a rejected one
    LabelledResponse("写夏", "别的", 0),  # its prompt is known, its response is not
    LabelledResponse("写生日", "春暖花开", 1),  # its response is known, for another prompt
]


def test_leaked_rows_are_found_by_prompt_and_response_together():
    kept, dropped = without_leaks(LABELLED, PAIRS, SFT)
    assert kept == LABELLED[2:] and dropped == 2
    assert without_leaks(LABELLED) == (LABELLED, 0)
    kept, dropped = without_leaks(PAIRS, [LabelledResponse("写秋", "秋", 0)])
    assert kept == [PAIRS[0], PAIRS[2]] and dropped == 1


def test_overlaps_between_files():
    report = audit({"sft": SFT, "pairs": PAIRS}, {"labelled": LABELLED})
    found = {o.train: (o.leaked, o.known_prompts, o.leak_rule_accuracy) for o in report.overlaps}
    # "stands there as good -> good": of PAIRS, right on rows 0, 1, 2 and wrong on 3; of SFT, right on the two bad ones.
    assert found == {"pairs": (2, 2, 0.75), "sft": (0, 1, 0.5)}
    assert any("2 of 4 records are also in pairs" in line for line in report.lines())
    json.dumps(report.to_dict())


def test_a_prefix_hides_no_overlap():
    prompts = [Prompt("只一条：写春"), Prompt("只一条：写山")]
    assert audit({"pairs": PAIRS}, {"rl": prompts}).overlaps[0].known_prompts == 0
    assert audit({"pairs": PAIRS}, {"rl": prompts}, prefix="只一条：").overlaps[0].known_prompts == 1
    assert audit({"rl": prompts}, {"pairs": PAIRS}, prefix="只一条：").overlaps[0].known_prompts == 1


def test_defects_within_a_file():
    pairs = [*PAIRS, PAIRS[0], PreferencePair("写山", "山", "山")]
    report = audit({"pairs": pairs, "sft": SFT}, {})
    assert (report.files["pairs"].duplicates, report.files["pairs"].same_sides) == (1, 1)
    assert report.files["sft"].duplicates == 1 and report.files["sft"].length is None


def test_a_clean_set_has_no_findings():
    report = audit({"a": [Prompt("一"), Prompt("二")]}, {"b": [Prompt("三")]})
    assert report.lines() == [] and report.overlaps[0].leaked == 0


def test_length_rules():
    assert best_length_threshold([1, 2, 3, 4], [0, 0, 1, 1]) == 1.0
    assert best_length_threshold([1, 2, 3, 4], [1, 1, 0, 0]) == 1.0  # shorter is better: a give-away just as well
    assert best_length_threshold([1, 2, 3, 4], [0, 1, 0, 1]) == 0.75
    assert best_length_threshold([5, 5, 5, 5], [1, 1, 1, 0]) == 0.75  # no rule beats the larger class
    assert best_length_threshold([5, 5, 5, 5], [0, 0, 0, 1]) == 0.75
    found = length_audit(PAIRS)
    assert found.longer_wins == pytest.approx(2 / 3) and found.threshold_accuracy == pytest.approx(2 / 3)
    assert length_audit([PreferencePair("写", "一二", "三四")]).longer_wins == 0.5
    assert length_audit(LABELLED).longer_wins is None and length_audit(LABELLED).threshold_accuracy == 1.0


@pytest.mark.skipif(not os.environ.get("RLAIF_PAPER_DATA"), reason="RLAIF_PAPER_DATA is not set")
def test_the_papers_leak_is_found():
    folder = Path(os.environ["RLAIF_PAPER_DATA"])
    train = load(PreferencePair, folder / "reward_data_train.json", format="sharegpt_pairs", on_error="skip").records
    sft = load(SftExample, folder / "sft_data.json", format="alpaca").records
    held_out = load(LabelledResponse, folder / "evaluate_data.json", format="labelled").records
    report = audit({"rm": train, "sft": sft}, {"evaluation": held_out})
    leaks = {o.train: o for o in report.overlaps}
    assert leaks["rm"].leaked == 1000 and leaks["sft"].leaked == 633
    assert leaks["rm"].leak_rule_accuracy > 0.98
    assert report.files["rm"].length.longer_wins > 0.95
    kept, dropped = without_leaks(held_out, train, sft)
    assert dropped >= 1000 and audit({"rm": train, "sft": sft}, {"e": kept}).overlaps[0].leaked == 0
