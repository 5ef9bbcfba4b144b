"""The game that optimises the judge's principles, with players whose moves are known."""

import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.data.records import LabelledResponse
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.llm import LLMReply
from rlaif_jax.feedback.principle_game import GameConfig, PrincipleGame
from rlaif_jax.feedback.principles import Edit, Versions, apply_edit, diff, read_rules
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.verdicts import Verdicts
from rlaif_jax.language import EN, ZH, is_han

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
