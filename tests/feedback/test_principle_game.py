"""The game that optimises the judge's principles, with players whose moves are known."""

import io
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.data.records import LabelledResponse, Prompt
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.llm import Failure, LLMReply
from rlaif_jax.feedback.principle_game import GameConfig, PrincipleGame
from rlaif_jax.feedback.principles import Edit, Versions, apply_edit, diff, read_rules, rules_text
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.verdicts import Verdicts
from rlaif_jax.language import EN, ZH, is_han
from rlaif_jax.stages.principles import _check_rows, measure_on

FLAWS = "甲乙丙丁"  # an answer is bad if it holds one of these; a principle "不写X" covers one


def judge(principles, items):
    covered = "".join(principles)
    return Verdicts(np.array([0.0 if any(f in r and f in covered for f in FLAWS) else 1.0 for _, r in items], np.float32))


LABELLED = [LabelledResponse(f"问{i}", "好" + FLAWS[i // 2 % 4] * (i % 2), 1 - i % 2) for i in range(40)]
BALANCE = [LabelledResponse(f"验{i}", f"好{f}", 0) for i, f in enumerate(FLAWS * 3)] + [LabelledResponse("验", "好", 1)] * 12


def measure(principles):
    said = judge(principles, [(r.prompt, r.response) for r in BALANCE]).p_good > 0.5
    labels = np.array([r.label for r in BALANCE]) == 1
    balanced = (np.mean(said[labels]) + np.mean(~said[~labels])) / 2
    return {"accuracy": float(np.mean(said == labels)), "balanced_accuracy": float(balanced), "kappa": 0.0, "n": len(BALANCE)}


class Players:
    """A generator that uses the last strategy, honest confessions, and now and then a harmful suggestion."""

    name = "players"

    def complete(self, requests, on_reply=None):
        return [LLMReply(self._say(r.messages[-1].content)) for r in requests]

    def _say(self, text):
        if "只输出回答本身" in text:
            return "好" + next((f for f in FLAWS if f"写{f}" in text), "甲")
        if "骗过了评委" in text or "不一致" in text:
            found = next((f for f in FLAWS if f in text.split("⟦")[-1] or f"好{f}" in text), "")
            return json.dumps({"suggestion": f"不写{found}"}, ensure_ascii=False)
        if "识破了" in text:
            return json.dumps({"suggestion": "写" + FLAWS[len(text) % 4]}, ensure_ascii=False)
        suggestion = text.split("有人建议：⟦")[1].split("⟧")[0]
        return json.dumps({"edit": "add", "number": 0, "text": suggestion}, ensure_ascii=False)


def play(folder, rounds=4, llm=None, **settings):
    queries = [f"请求{i}" for i in range(20)]
    cfg = GameConfig(rounds=rounds, **settings)
    game = PrincipleGame(Agent(llm or Players(), load_prompts("zh")), judge, measure, cfg, folder, Console(quiet=True),
                         queries=queries, labelled=LABELLED, seed=0)  # fmt: skip
    return game, game.play(["不写甲"], ["写乙"])


def test_the_principles_grow_until_they_cover_the_flaws(tmp_path):
    game, rows = play(tmp_path, rounds=10)
    assert rows[0]["balanced_accuracy"] == pytest.approx(0.625) and rows[-1]["balanced_accuracy"] == 1.0
    best = game.principles.rules(game.principles.best())
    assert {f for f in FLAWS if f"不写{f}" in best} == set(FLAWS)
    assert all(b["balanced_accuracy"] >= a["balanced_accuracy"] for a, b in itertools.pairwise(rows))
    assert (tmp_path / "principles" / "v000.txt").read_text(encoding="utf-8") == "不写甲\n"
    assert any(0 < r["fooled"] <= 1 for r in rows[1:])


def test_the_gate_rolls_back_what_harms(tmp_path):
    class Harmful(Players):
        def _say(self, text):
            if "有人建议" in text:
                return json.dumps({"edit": "replace", "number": 1, "text": "什么都行"}, ensure_ascii=False)
            return super()._say(text)

    game, rows = play(tmp_path, llm=Harmful())
    assert game.current == ["不写甲"] and sum(r["rolled_back"] for r in rows) > 0
    assert rows[-1]["balanced_accuracy"] == rows[0]["balanced_accuracy"]


def test_of_several_edits_the_gate_takes_the_best(tmp_path):
    class Unsure(Players):
        """Its edit is right for one seed in four; otherwise it changes nothing or spoils the first rule."""

        def complete(self, requests, on_reply=None):
            return [LLMReply(self._say(r.messages[-1].content, r.seed)) for r in requests]

        def _say(self, text, seed):
            if "有人建议" not in text or seed % 4 == 0:
                return super()._say(text)
            return json.dumps({"edit": ("keep", "replace")[seed % 2], "number": 1, "text": ("", "什么都行")[seed % 2]})

    (_, single), (game, rows) = (play(tmp_path / str(n), 1, Unsure(), edits=n) for n in (1, 8))
    assert rows[-1]["balanced_accuracy"] == 1.0 > single[-1]["balanced_accuracy"]
    outcomes = [json.loads(line)["outcome"] for line in (tmp_path / "8" / "game.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "repeated" in outcomes  # the same words are tried once
    assert "什么都行" not in game.current and sum(r["kept"] for r in rows) < sum(r["kept"] for r in single)
    assert sum(r["unusable"] for r in single) == 0  # to change nothing is a proper edit


def test_unreadable_players_change_nothing_and_are_counted(tmp_path):
    class Mute(Players):
        def _say(self, text):
            return "……" if "JSON" in text else super()._say(text)

    game, rows = play(tmp_path, llm=Mute())
    events = [json.loads(line) for line in (tmp_path / "game.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = sum(e["list"] == "principles" for e in events)
    assert game.current == ["不写甲"] and sum(r["unusable"] for r in rows) == expected > len(rows)


def test_an_edit_that_keeps_the_list_is_an_outcome_of_its_own(tmp_path):
    class Content(Players):
        def _say(self, text):
            if "有人建议" in text:
                return json.dumps({"edit": "keep", "number": 1, "text": ""})
            return super()._say(text)

    class Torn(Content):
        """Keeps the list for some seeds; otherwise names an entry that is not there."""

        def complete(self, requests, on_reply=None):
            return [LLMReply(self._torn(r.messages[-1].content, r.seed)) for r in requests]

        def _torn(self, text, seed):
            if "有人建议" in text and seed % 3:
                return json.dumps({"edit": "replace", "number": 9, "text": "无"})
            return self._say(text)

    for llm, edits in ((Content(), 1), (Torn(), 6)):
        folder = tmp_path / llm.__class__.__name__
        game, rows = play(folder, llm=llm, edits=edits)
        outcomes = [json.loads(line)["outcome"] for line in (folder / "game.jsonl").read_text(encoding="utf-8").splitlines()]
        assert set(outcomes) <= {"kept", "repeated", "unusable"} and outcomes.count("kept") > 2
        assert game.current == ["不写甲"] and 0 < sum(r["kept"] for r in rows) <= outcomes.count("kept")
        assert rows[0]["kept"] == 0 and (edits > 1 or sum(r["unusable"] for r in rows) == 0)


def test_an_interrupted_game_goes_on_as_if_it_had_not_been(tmp_path):
    _, whole = play(tmp_path / "whole")

    class Dies(Players):
        calls = 0

        def complete(self, requests, on_reply=None):
            Dies.calls += 1
            if Dies.calls > 20:
                raise KeyboardInterrupt
            return super().complete(requests)

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "cut", llm=Dies())
    game, resumed = play(tmp_path / "cut")
    assert json.dumps(resumed) == json.dumps(whole)
    assert game.principles.rows == Versions(tmp_path / "whole" / "principles").rows


def answers(*p_good, failure=None):
    """A judge with these verdicts, whatever it is asked."""
    failures = tuple(failure if np.isnan(p) else None for p in p_good)
    return lambda principles, items: Verdicts(np.array(p_good, np.float32), failures=failures)


def test_silence_on_hard_answers_gains_nothing():
    rows = [LabelledResponse("q", "r", label) for label in (1, 1, 1, 0, 0, 0)]
    hard = measure_on(answers(0.9, 0.9, 0.2, 0.1, 0.1, 0.8), rows)(["x"])
    silent = measure_on(answers(0.9, 0.9, np.nan, 0.1, 0.1, np.nan), rows)(["x"])
    assert hard["balanced_accuracy"] == silent["balanced_accuracy"] == pytest.approx(2 / 3)
    assert (hard["n"], silent["n"]) == (6, 4) and hard["accuracy"] == silent["accuracy"]


def test_a_tie_means_bad_for_the_gate_too():
    assert measure_on(answers(0.5, 0.5), [LabelledResponse("q", "r", label) for label in (1, 0)])(["x"])["accuracy"] == 0.5
    assert measure_on(answers(0.5), [LabelledResponse("q", "r", 0)])(["x"])["accuracy"] == 1.0


def test_a_judge_that_is_away_says_nothing_about_principles():
    rows = [LabelledResponse("q", "r", label) for label in (1, 0, 1, 0)]
    with pytest.raises(UserError, match=r"1 of 4 labelled rows \(timeout: 60 s\)"):
        measure_on(answers(0.9, 0.1, np.nan, 0.1, failure=Failure("timeout", "60 s")), rows)(["x"])
    unreadable = measure_on(answers(0.9, 0.1, np.nan, 0.1, failure=Failure("unreadable")), rows)(["x"])
    assert unreadable["accuracy"] == 0.75
    with pytest.raises(UserError, match="no verdict on any labelled row .*HTTP 401"):
        measure_on(answers(np.nan, np.nan, failure=Failure("rejected", "HTTP 401")), rows[:2])(["x"])


def test_an_outage_ends_the_round_and_the_game_goes_on_later(tmp_path):
    _, whole = play(tmp_path / "whole")

    class Dies(Players):
        calls = 0

        def complete(self, requests, on_reply=None):
            Dies.calls += 1
            if Dies.calls > 14:
                return [LLMReply(failure=Failure("connection", "refused")) for _ in requests]
            return super().complete(requests)

    with pytest.raises(UserError, match="connection: refused"):
        play(tmp_path / "cut", llm=Dies())
    assert json.dumps(play(tmp_path / "cut")[1]) == json.dumps(whole)


def test_one_request_that_is_never_answered_does_not_stop_the_game(tmp_path):
    class Trips(Players):
        def complete(self, requests, on_reply=None):
            replies = super().complete(requests)
            return [LLMReply(failure=Failure("server", "HTTP 500")) if "请求3\n" in r.messages[0].content + "\n" else reply
                    for r, reply in zip(requests, replies, strict=True)]  # fmt: skip

    assert len(play(tmp_path, rounds=3, llm=Trips())[1]) == 4


def test_the_game_shows_system_turns_and_hides_thinking(tmp_path):
    asked = []

    class Thinker(Players):
        def complete(self, requests, on_reply=None):
            asked.extend(requests)
            return [LLMReply(f'<think>{{"edit": "remove", "number": 1}}</think>{r.text}') for r in super().complete(requests)]

    def see(principles, items):
        assert all(system == "只用英文" and "<think>" not in response for _, response, system in items)
        return judge(principles, [item[:2] for item in items])

    cfg = GameConfig(rounds=2)
    labelled = [LabelledResponse(r.prompt, r.response, r.label, "只用英文") for r in LABELLED]
    game = PrincipleGame(Agent(Thinker(), load_prompts("zh")), see, measure, cfg, tmp_path, Console(quiet=True),
                         queries=[Prompt(f"请求{i}", "只用英文") for i in range(9)], labelled=labelled, seed=0)  # fmt: skip
    rows = game.play(["不写甲"], ["写乙"])
    assert sum(r["accepted"] for r in rows) > 0
    assert all("只用英文" in r.messages[0].content or "有人建议" in r.messages[0].content for r in asked)


def test_a_gate_of_one_kind_is_refused(tmp_path):
    game = PrincipleGame(Agent(Players(), load_prompts("zh")), judge, measure_on(answers(0.9), [LabelledResponse("q", "r", 1)]),
                         GameConfig(), tmp_path, Console(quiet=True), queries=["q"], labelled=LABELLED, seed=0)  # fmt: skip
    with pytest.raises(UserError, match="both kinds"):
        game.play(["x"], ["y"])
    assert measure_on(judge, [])(["x"])["n"] == 0


def test_rows_that_say_little_are_named_before_the_game():
    said = Console(record=True, width=200, file=io.StringIO())
    x = SimpleNamespace(cfg=SimpleNamespace(judge=SimpleNamespace(game=GameConfig(gate_rows=2))), console=said)
    good, bad = (LabelledResponse("q", "r", label) for label in (1, 0))
    for gate, match in (([good] * 2, "2 labelled rows, none of them bad"), ([], "0 labelled rows, none of them good or bad")):
        with pytest.raises(UserError, match=f"{match}.*judge.game.gate_rows .it is 2"):
            _check_rows(x, gate, [good, bad] * 30)
    _check_rows(x, [good, bad], [good, bad] * 30)
    assert said.export_text() == ""
    _check_rows(x, [good, bad], [good])
    assert "tested on 1 labelled rows, none of them bad" in said.export_text()


@pytest.mark.parametrize(
    "content",
    ["", "[", "{}", "[1]", "\xff", "[" * 5000, '[{"version": 1, "score": 0.5, "why": "start", "accepted": true}]',
     '[{"version": 0, "score": NaN, "why": "start", "accepted": true}]', '[{"version": 0, "score": 1, "why": "s", "accepted": 1}]',
     '[{"version": 0, "score": 1, "accepted": true}]'],
)  # fmt: skip
def test_damaged_state_is_named(tmp_path, content):
    play(tmp_path, rounds=1)
    for name in ("principles/versions.json", "rounds.jsonl"):
        path = tmp_path / name
        before = path.read_bytes()
        path.write_bytes(content.encode("latin-1"))
        if content == "{}" and name != "rounds.jsonl":
            content = "[{}]"
        with pytest.raises(UserError, match=path.name):
            play(tmp_path, rounds=2)
        path.write_bytes(before)
    rows = play(tmp_path, rounds=2)[1]
    assert len(rows) == 3


def test_every_rule_survives_its_file(tmp_path):
    rules = ["#1 must be warm", "\\# too", "\\\\", "# # #", "plain", "a\u2028b\u0085c", "1. 甲", "tab\tinside"]
    path = tmp_path / "rules.txt"
    path.write_text(rules_text(rules), encoding="utf-8")
    assert read_rules(path) == rules
    versions = Versions(tmp_path / "v")
    versions.add(rules, 0.5, "start", True)
    assert Versions(tmp_path / "v").rules(0) == rules
    assert rules_text(["two\nlines\r\n"]) == "two lines\n"


def test_files_of_rules_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "rules.txt"
    for content, match in ((b"\xff\xfe", "rules.txt:1: UTF-16"), ("好\n".encode() + b"\xc3(", "rules.txt:2: not UTF-8 at byte 4")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=match):
            read_rules(path)
    path.write_bytes(b"\xef\xbb\xbf# note\r\none\rtwo\r\n")
    assert read_rules(path) == ["one", "two"]
    for source in (tmp_path, "x" * 5000, "no\0where", "~nobody-of-that-name/rules.txt"):
        with pytest.raises(UserError):
            read_rules(source)


def test_edits():
    rules = ["甲", "乙"]
    assert apply_edit(rules, Edit("add", 0, "丙"), 3) == ["甲", "乙", "丙"]
    assert apply_edit(rules, Edit("add", 0, "丙"), 2) is None and apply_edit(rules, Edit("add", 0, "甲"), 3) is None
    assert apply_edit(rules, Edit("replace", 2, "丙"), 2) == ["甲", "丙"]
    assert apply_edit(rules, Edit("replace", 3, "丙"), 2) is None
    assert apply_edit(rules, Edit("remove", 1), 2) == ["乙"] and apply_edit(["甲"], Edit("remove", 1), 2) is None
    assert apply_edit(rules, Edit("keep"), 2) is None
    assert apply_edit(rules, Edit("add", 0, "一条\n# 假的注释"), 3)[2] == "一条 # 假的注释"  # one line in the file
    assert diff(["甲", "乙"], ["甲", "丙"]).split("\n") == ["  甲", "- 乙", "+ 丙"]


def test_rule_files(tmp_path):
    path = tmp_path / "rules.txt"
    path.write_text("# comment\n\n 一 \n二\n", encoding="utf-8")
    assert read_rules(path) == ["一", "二"] and read_rules("principles")
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="no rule"):
        read_rules(path)
    with pytest.raises(UserError, match="principles"):
        read_rules("no_such_list")
    for name in ("principles", "principles_general", "strategies"):
        chinese, english = (read_rules(name, language) for language in (ZH, EN))
        assert read_rules(name) == chinese and len(chinese) == len(english)
        assert not any(is_han(c) for rule in english for c in rule)
    with pytest.raises(UserError, match="game"):
        GameConfig(games=0, reflections=0)


def test_damaged_versions_and_rules_are_named(tmp_path):
    versions = Versions(tmp_path / "principles")
    versions.add(["不说套话"], 0.5, "start", True)
    versions.add(["不说套话", "要有画面"], 0.7, "suggested", True)
    assert Versions(tmp_path / "principles").rules(1) == ["不说套话", "要有画面"]
    index, rules = tmp_path / "principles" / "versions.json", tmp_path / "principles" / "v001.txt"
    for path, read in ((index, lambda: Versions(tmp_path / "principles")), (rules, lambda: versions.rules(1))):
        whole = path.read_bytes()
        for content in (b"", whole[:-4], whole.replace(b"0.7", b"0.2"), whole.replace("画".encode(), "花".encode()), None):
            if content == whole:
                continue
            path.unlink() if content is None else path.write_bytes(content)
            if path == index and content is None:
                with pytest.raises(UserError, match="has 0 of 2 versions"):
                    read().truncate(2)
            else:
                with pytest.raises(UserError, match=path.name):
                    read()
            path.write_bytes(whole)
