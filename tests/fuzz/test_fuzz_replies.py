"""Mutated replies of models, and mutated files that the feedback loop reads back: a value, or an error that names the place."""

import json
import math

import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.data.records import LabelledResponse
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.choices import choice_row
from rlaif_jax.feedback.curated_items import read_items
from rlaif_jax.feedback.debate import Debate
from rlaif_jax.feedback.json_replies import ReplyError, ask, parse_json
from rlaif_jax.feedback.llm import LLMReply, LLMRequest, Message
from rlaif_jax.feedback.principle_game import GameConfig, PrincipleGame
from rlaif_jax.feedback.principles import Versions, read_rules, rules_text
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.thinking import without_thinking
from rlaif_jax.feedback.verdicts import Verdicts, parse_verdict
from tests.fuzz.mutate import json_mutations, mutations, outcomes

QUICK, FULL = 200, 10_000
COUNTS = [pytest.param(QUICK, id="quick"), pytest.param(FULL, id="full", marks=pytest.mark.slow)]
VERDICT, EDIT = {"verdict": (0, 1), "reason": str}, {"edit": ("keep", "add", "replace", "remove"), "number": int, "text": str}
REPLIES = (
    '<think>也许 {"verdict": 0, "reason": "草稿"}</think>```json\n{"verdict": 1, "reason": "有画面，\\u597d",}\n```',
    '<|channel|>analysis<|message|>{"verdict": 0}<|end|><|start|>assistant<|channel|>final<|message|>{"verdict": 1, "reason": "x"}',
    'So: {"edit": "replace", "number": "3", "text": "one rule", "why": {"a": [1, 2.5, null]}} as asked.',
    "<thinking>Bad?</thinking>\n**Verdict:** Bad：违反第2条 (“Good” is only quoted)",
    "Good\n</think>Bad: rule 2. It says {name}.",
)
REQUEST = LLMRequest((Message("user", "写一条祝福"),))


def as_text(data: bytes) -> str:
    """A reply as it could arrive: bytes that are no UTF-8 become half characters."""
    return LLMReply(data.decode("utf-8", "surrogateescape")).text


def replies(count: int) -> list[str]:
    return [as_text(case) for i, reply in enumerate(REPLIES) for case in mutations(reply.encode(), -(-count // len(REPLIES)), i)]


def refusing(parse):
    """`parse` with ReplyError as the refusal that the fuzzer counts."""

    def read(text):
        try:
            return parse(text)
        except ReplyError as error:
            assert len(str(error)) < 300
            raise UserError(str(error)) from error

    return read


def strict(text: str, schema: dict) -> dict | None:
    """What a strict reader finds in a text that is one JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return {name: found.get(name) for name in schema} if isinstance(found, dict) else None


@pytest.mark.parametrize("count", COUNTS)
def test_json_replies(count):
    for schema in (VERDICT, EDIT):
        accepted, refused = outcomes(refusing(lambda t, s=schema: parse_json(t, s)), replies(count))
        accepted_2, refused_2 = outcomes(
            refusing(lambda t, s=schema: parse_json(t, s)),
            (json.dumps(v, ensure_ascii=i % 2 == 0) for i, v in enumerate(
                json_mutations({"verdict": 1, "reason": "好", "edit": "add", "number": 2, "text": "t"}, count, 7))),
        )  # fmt: skip
        assert refused and refused_2 and accepted_2
        for text, value in accepted + accepted_2:
            assert value.keys() == schema.keys()
            for name, kind in schema.items():
                assert value[name] in kind if isinstance(kind, tuple) else type(value[name]) is kind
                json.dumps(value[name], ensure_ascii=False).encode()
            known = strict(text, schema)
            if known is not None and schema is VERDICT and isinstance(known["reason"], str) and known["reason"].isascii():
                assert value["reason"] == known["reason"].strip() and str(value["verdict"]) == str(known["verdict"]).strip()[:1]


@pytest.mark.parametrize("count", COUNTS)
def test_spoken_verdicts_and_thinking(count):
    accepted, refused = outcomes(refusing(parse_verdict), replies(count))
    assert accepted and refused
    for text, value in accepted:
        said = without_thinking(text).text
        assert value["verdict"] in ("Good", "Bad") and value["reason"] in said
        assert value["verdict"].lower() in said.lower() or len(said) < 40  # words of a language
    read, _ = outcomes(without_thinking, replies(count))
    for text, found in read:  # what is left is in the reply, and either a text or a cause
        assert len(found.text) <= len(text) and set(found.text) <= set(text) | {"\n"} and (found.text == "") == bool(found.cause)


@pytest.mark.parametrize("count", COUNTS)
def test_asking_never_ends_in_an_exception(count):
    class Says:
        name = "says"

        def __init__(self, text):
            self.text = text

        def complete(self, requests, on_reply=None):
            [r.key("m") for r in requests]
            return [LLMReply(self.text, finish_reason="length" if len(self.text) % 2 else "stop") for _ in requests]

    for parse in (lambda t: parse_json(t, VERDICT), parse_verdict):
        read, refused = outcomes(lambda t, p=parse: ask(Says(t), [REQUEST], p)[0], replies(count))
        assert not refused
        kinds = {a.failure.kind for _, a in read if a.value is None}
        assert kinds <= {"thinking", "empty", "cut", "unreadable"} and len(kinds) > 2


@pytest.mark.parametrize("count", COUNTS)
def test_likeliest_tokens(count):
    top = [["Good", -0.1], [" good", -3.0], ["Bad", -4.0], ["**", -5.0]]

    def read(case):
        pairs = [(str(t), float(lp)) for t, lp in case if isinstance(lp, int | float) and -1e6 < lp <= 0]
        row = choice_row(pairs, ("Good", "Bad")) if pairs else [math.nan] * 2
        assert all(math.isnan(v) for v in row) or all(math.isfinite(v) for v in row)
        return row

    cases = [c for c in json_mutations(top, count, 3) if isinstance(c, list)]
    accepted, _ = outcomes(read, (c for c in cases if all(isinstance(t, list) and len(t) == 2 for t in c)))
    assert accepted


@pytest.mark.parametrize("count", COUNTS)
def test_files_of_rules(count, tmp_path):
    path = tmp_path / "rules.txt"

    def read(data):
        path.write_bytes(data)
        rules = read_rules(path)
        path.write_text(rules_text(rules), encoding="utf-8", newline="")
        assert read_rules(path) == rules and all(rule == rule.strip() and "\n" not in rule for rule in rules)
        return rules

    seed = "# note\n不用套话。\n\\#1 must be warm\n  “Keep” every limit \r\n".encode()
    accepted, refused = outcomes(read, mutations(seed, count, 1))
    assert accepted and refused


def item() -> dict:
    one = Debate("问", "好\u2028祝福", "p", "n", 1, "r", 1, "f")
    other = Debate("问", "差", problem="judge: timeout: 60 s", cause="timeout", unanswered=True)
    pair = {"prompt": "问", "chosen": "好\u2028祝福", "rejected": "差", "margin": 0.5, "system": ""}
    return {"prompt": "问", "system": "", "examples": ["例"], "debates": [vars(one), vars(other)], "pairs": [pair],
            "lost": {"cut": 2}, "problem": "", "unanswered": True}  # fmt: skip


@pytest.mark.parametrize("count", COUNTS)
def test_items_of_a_curation(count, tmp_path):
    path = tmp_path / "items.jsonl"

    def read(data):
        path.write_bytes(data)
        items = read_items(path)
        known = [json.loads(line) for line in data.split(b"\n")[:-1]]
        assert all(found in known for found in items)
        return items

    line = json.dumps(item(), ensure_ascii=False).encode() + b"\n"
    accepted, refused = outcomes(read, mutations(line * 2, count, 1))
    values = (json.dumps(value).encode() + b"\n" for value in json_mutations(item(), count, 2))
    accepted_2, refused_2 = outcomes(read, values)
    assert accepted and refused and accepted_2 and refused_2


@pytest.mark.parametrize("count", COUNTS)
def test_state_of_the_game(count, tmp_path):
    class Mute:
        name = "mute"

        def complete(self, requests, on_reply=None):
            return [LLMReply("?") for _ in requests]

    def judge(principles, items):
        return Verdicts(np.full(len(items), 0.9, np.float32))

    def measure(principles):
        return {"accuracy": 0.5, "balanced_accuracy": 0.5, "kappa": 0.0, "n": 2}

    def game():
        cfg, labelled = GameConfig(rounds=1, games=1), [LabelledResponse("q", "r", 1)]
        return PrincipleGame(Agent(Mute(), load_prompts("en")), judge, measure, cfg, tmp_path, Console(quiet=True), queries=["q"],
                             labelled=labelled, seed=0)  # fmt: skip

    game().play(["# one", "two"], ["s"])
    for name in ("principles/versions.json", "rounds.jsonl"):
        path = tmp_path / name
        before = path.read_bytes()

        def read(data, path=path):
            path.write_bytes(data)
            played = game()
            rows = played.play(["# one", "two"], ["s"])
            return rows, played.current, Versions(tmp_path / "principles").best()

        accepted, refused = outcomes(read, mutations(before, count // 2, 1))
        path.write_bytes(before)
        assert refused and all(current == ["# one", "two"] for _, (_, current, _) in accepted)
