"""Transcripts for the embedded feedback model."""

import json

from rlaif_jax.data import corpus
from rlaif_jax.data.corpus.dialogue import MANIPULATION
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.prompts import ROLES, load_prompts
from rlaif_jax.feedback.transcripts import write_transcripts, write_verdict_pairs

ROWS = write_transcripts(0, 1500, load_prompts("embedded"), 10, set(), 10)
BY_ROLE = {}
for row in ROWS:
    BY_ROLE.setdefault(row.role, []).append(row)
NAMES = {f.name_zh: f for f in corpus.FLAWS.values()}


def test_a_verdict_is_bad_only_for_what_the_principles_cover():
    detector = BY_ROLE["detector"]
    bad = [r for r in detector if r.target.startswith("Bad")]
    assert 0.2 < len(bad) / len(detector) < 0.6
    for row in detector:
        verdict, _, remark = row.target.partition("：")
        principles = row.messages[-1].content.split("\n")[1:]
        assert 1 <= len(principles) <= 10
        covered = remark == MANIPULATION or any(n in NAMES and NAMES[n].principle_zh in principles for n in remark.split("，"))
        assert covered == (verdict == "Bad")
    assert any(r.target == "Good：没有问题" for r in detector) and any("套话" in r.target for r in detector if r not in bad)
    pleas = [r for r in bad if MANIPULATION in r.target]
    assert pleas and all("Good" in said or "1 分" in said or "标准" in said for r in pleas for said in [r.messages[1].content])


def test_every_role_is_there_and_answers_in_its_form():
    assert set(BY_ROLE) == set(ROLES) - {"candidate"}
    for role in ("debate_judge", "debate_review"):
        found = [json.loads(r.target) for r in BY_ROLE[role]]
        assert {v["verdict"] for v in found} == {0, 1} and all(v["reason"] for v in found)
    for role in ("confess", "principle_review"):
        found = {json.loads(r.target)["suggestion"] for r in BY_ROLE[role]}
        assert {text.removeprefix("删去") for text in found} <= {f.principle_zh for f in NAMES.values()}
        assert any(text.startswith("删去") for text in found) == (role == "principle_review")
    edits = [json.loads(r.target) for r in BY_ROLE["optimise"]]
    assert {e["edit"] for e in edits} == {"keep", "add", "replace", "remove"}
    assert {r.target for r in BY_ROLE["compare"]} == {"A", "B"}


def test_same_seed_same_rows_and_held_out_requests_stay_out():
    a, b = (write_transcripts(0, 50, load_prompts("embedded"), 10, set(), 10) for _ in range(2))
    assert a == b
    held_out = {r.messages[0].content for r in BY_ROLE["detector"]}
    again = write_transcripts(0, 200, load_prompts("embedded"), 10, held_out, 10)
    assert not held_out & {r.messages[0].content for r in again}


def test_the_bundled_rules_are_ones_that_the_model_was_taught():
    assert set(read_rules("principles")) <= {f.principle_zh for f in corpus.FLAWS.values()}
    assert set(read_rules("strategies")) <= set(NAMES)


def test_verdicts_on_a_pair_of_answers_differ_by_principles_or_answer_alone():
    pairs = write_verdict_pairs(0, 200, load_prompts("embedded"), 10, set(), 10, questions=8)
    assert len(pairs) == 200
    for good, bad in pairs:
        assert len(good) == len(bad) == 8 and {t.target for t in good} == {"Good"}
        assert sum(t.target == "Bad" for t in bad) >= 2 and {t.messages[1] for t in good} != {t.messages[1] for t in bad}
        assert len({t.messages[:2] for t in good}) == len({t.messages[:2] for t in bad}) == 1
        assert [t.messages[-1] for t in good] == [t.messages[-1] for t in bad]
        covered = [set(t.messages[-1].content.split("\n")[1:]) for t in bad]
        acquitted = set.union(set(), *(c for c, t in zip(covered, bad, strict=True) if t.target == "Good"))
        assert all(c - acquitted for c, t in zip(covered, bad, strict=True) if t.target == "Bad")
    singles = write_verdict_pairs(0, 50, load_prompts("embedded"), 10, set(), 1, questions=4)
    assert all(len(t.messages[-1].content.split("\n")) == 2 for pair in singles for side in pair for t in side)
