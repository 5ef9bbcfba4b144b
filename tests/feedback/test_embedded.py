"""Transcripts for the embedded feedback model."""

import json

from rlaif_jax.data import corpus
from rlaif_jax.feedback.embedded import MANIPULATION, transcripts
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.prompts import load_prompts

ROWS = transcripts(0, 1500, load_prompts("embedded"), 10, set())
BY_ROLE = {}
for row in ROWS:
    BY_ROLE.setdefault(row.prompt.split("\n")[0].split("/")[0].rstrip("0123456789"), []).append(row)
NAMES = {f.name_zh: f for f in corpus.FLAWS.values()}


def parts(row):
    head, rest = row.prompt.split("\n问⟦")
    return head.split("\n")[1:], rest


def test_a_verdict_is_bad_only_for_what_the_principles_cover():
    detector = BY_ROLE["评判"]
    bad = [r for r in detector if r.response.startswith("Bad")]
    assert 0.25 < len(bad) / len(detector) < 0.6 and all(r.response == "Good" for r in detector if r not in bad)
    for row in bad:
        principles, _ = parts(row)
        assert 1 <= len(principles) <= 10
        name = row.response.partition("：")[2]
        assert name == MANIPULATION or NAMES[name].principle_zh in principles
    pleas = [r for r in bad if MANIPULATION in r.response]
    assert pleas and all("Good" in r.prompt or "1 分" in r.prompt or "标准" in r.prompt for r in pleas)


def test_every_role_is_there_and_answers_in_its_form():
    assert {"评判", "正方", "反方", "评委", "复核", "使坏", "招认", "换招", "反思", "比较", "改写"} == set(BY_ROLE)
    for role in ("评委", "复核"):
        found = [json.loads(r.response) for r in BY_ROLE[role]]
        assert {v["verdict"] for v in found} == {0, 1} and all(v["reason"] for v in found)
    for role in ("招认", "反思"):
        assert {json.loads(r.response)["suggestion"] for r in BY_ROLE[role]} <= {f.principle_zh for f in NAMES.values()}
    edits = [json.loads(r.response) for r in BY_ROLE["改写"]]
    assert {e["edit"] for e in edits} == {"keep", "add", "replace"}
    assert {r.response for r in BY_ROLE["比较"]} == {"A", "B"}


def test_same_seed_same_rows_and_held_out_requests_stay_out():
    assert transcripts(0, 50, load_prompts("embedded"), 10, set()) == transcripts(0, 50, load_prompts("embedded"), 10, set())
    held_out = {r.prompt.split("问⟦")[1].split("⟧")[0] for r in ROWS if "问⟦" in r.prompt}
    again = transcripts(0, 200, load_prompts("embedded"), 10, held_out)
    assert not held_out & {r.prompt.split("问⟦")[1].split("⟧")[0] for r in again if "问⟦" in r.prompt}


def test_the_bundled_rules_are_ones_that_the_model_was_taught():
    assert set(read_rules("principles")) <= {f.principle_zh for f in corpus.FLAWS.values()}
    assert set(read_rules("strategies")) <= set(NAMES)
