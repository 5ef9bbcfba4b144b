"""The three files of a report: honest headline, escaped text, finite numbers, nothing fetched from elsewhere."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from rlaif_jax.errors import UserError
from rlaif_jax.evaluation import console, export, plots, report
from rlaif_jax.evaluation.compare import GradedSample, System
from rlaif_jax.evaluation.hacking import Candidate, Flag
from rlaif_jax.evaluation.headline import headline
from rlaif_jax.evaluation.scores import Figure
from rlaif_jax.evaluation.wins import Wins, score_wins

NASTY = "<script>alert(1)</script>{{7*7}}|`x`\n[a](http://x) $y$ &amp;"


def system(name, good, response="", n=40):
    """`good` of n answers are excellent, the first ones."""
    rows = []
    for i in range(n):
        scores = {"excellent": float(i < good), "compliance": None if i % 2 else 1.0, "reward": i / n + good / n}
        none = ("compliance",) if i % 2 else ()
        rows.append(GradedSample(f"请求{i}", response or f"祝福{name}{i}", 8, True, scores, none))
    return System(name, f"<i>{name}</i>", tuple(rows))


def example(**changes):
    curves = {
        "sft": (
            plots.Curve("loss", range(100), [1 / (i + 1) for i in range(100)], "nats"),
            plots.Curve("eval/loss", [0, 99], [1, 0.1]),
        ),
        "rl": (plots.Curve("奖励$x$", [0, 1, 2], [0.1, None, math.nan]),),
        "empty": (plots.Curve("kl", [], []),),
    }  # fmt: skip
    values = {
        "title": "base, SFT and RL",
        "systems": (system("base", 2), system("sft", 12, NASTY), system("rl", 30)),
        "curves": curves,
        "tables": (report.Table("Graders|x", ("grader", "AUC"), (("rm", 0.98), (NASTY, Figure(0.5, 0.4, 0.6, 9)))),),
        "facts": {"seed": "0", "config": "a = 1\nb = 2"},
        "notes": ("A note.",),
        "candidates": (Candidate("rl", "sft", ("reward",)),),
        "wins": (Wins("rl", "sft", "judge", Figure(0.6, 0.5, 0.7, 40)), Wins("rl", "data", "reward", Figure(0.2, 0.1, 0.3, 9))),
        "settings": {"rl.kl.coef": ("0.2", "0.001")},
    }  # fmt: skip
    return report.Report(**(values | changes))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "report"
    return folder, report.write_report(folder, example())


def test_the_files_and_no_leftovers(written):
    folder, paths = written
    kinds = ("html", "md", "json", "csv", "tex")
    assert {p.name for p in folder.iterdir()} == {f"report.{kind}" for kind in kinds} | {"figures"}
    assert paths == report.ReportPaths(*(folder / f"report.{kind}" for kind in kinds), folder / "figures")
    figures = {p.name: p.read_text(encoding="utf-8") for p in paths.figures.iterdir()}
    assert {"sft_loss.svg", "metrics_distinct_2_characters.svg"} <= set(figures)
    assert all(text.startswith("<svg") for text in figures.values())


def test_csv_and_latex_hold_every_system(written):
    rows = list(csv.DictReader(io.StringIO(written[1].csv.read_text(encoding="utf-8"))))
    mine = next(r for r in rows if (r["metric"], r["system"]) == ("excellent", "rl"))
    assert (float(mine["value"]), int(mine["n"])) == (0.75, 40) and float(mine["low"]) < 0.75 < float(mine["high"])
    text = written[1].latex.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "&" in line]
    assert all(line.count("&") - line.count(r"\&") == 3 and line.endswith(r"\\") for line in lines)
    assert r"rate of flawless answers & 5.0 \%" in text and "%" not in text.replace(r"\%", "")


def test_names_are_harmless_in_csv_and_latex():
    odd = system("=1+1", 2)
    rows = {"=1+1": {"reward": Figure(0.5, None, None, 1)}}
    assert "reward,'=1+1,0.5" in export.csv_table((odd,), rows)
    assert r"a\_b\$\#\textbackslash{}input" in export.latex_table((system(r"a_b$#\input", 2),), {r"a_b$#\input": {}})


class Tags(HTMLParser):
    """Every start tag and its attributes; the tags that are open at the end."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_well_formed_and_fetches_nothing(written):
    page = written[1].html.read_text(encoding="utf-8")
    tags = Tags(page)
    assert tags.open == []
    names = {name for name, _ in tags.found}
    assert not names & {"script", "link", "iframe", "i", "a", "object"}
    for _, attrs in tags.found:
        assert attrs.get("src", "data:").startswith("data:") and "href" not in attrs
    assert "url(" not in page and "@import" not in page
    shown = [attrs["alt"] for name, attrs in tags.found if name == "img"]
    assert [a for a in shown if "curve" in a] == ["Learning curve of sft: loss", "Learning curve of rl: 奖励$x$"], "kl has no value"
    assert len(shown) == 2 + 7


def test_model_text_is_escaped_and_not_evaluated(written):
    page = written[1].html.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{7*7}}" in page and "49|" not in page
    text = written[1].markdown.read_text(encoding="utf-8")
    assert "<script>" not in text and r"\{\{7\*7\}\}\|\`x\`<br>\[a\](http://x) \$y\$ &amp;amp;" in text


def test_markdown_tables_are_rectangular(written):
    blocks, block = [], []
    for line in [*written[1].markdown.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            block.append(len(re.findall(r"(?<!\\)\|", line)))
        elif block:
            blocks, block = [*blocks, block], []
    assert len(blocks) == 8  # comparison, differences, wins, checks, extra table, samples, facts, settings
    assert all(len(set(b)) == 1 and len(b) > 2 for b in blocks)


def test_json_has_every_number(written):
    data = json.loads(written[1].json.read_text(encoding="utf-8"), parse_constant=lambda c: pytest.fail(c))
    assert data["rows"]["rl"]["excellent"]["value"] == 0.75
    assert data["rows"]["rl"]["compliance"] == data["rows"]["rl"]["compliance"] | {"n": 20, "missing": 0}
    assert set(data["rows"]["sft"]["distinct_2"]) == {"value", "low", "high", "n", "missing"}
    assert set(data["differences"]) == {"sft - base", "rl - base", "rl - sft"}
    assert data["differences"]["rl - sft"]["excellent"]["value"] == pytest.approx(0.45)
    assert {("rl", "diversity"), ("rl", "length")} <= {(f["system"], f["name"]) for f in data["flags"]}
    assert data["own_signals"] == {"rl": ["reward"]}
    assert data["wins"][0]["share"]["value"] == 0.6 and data["settings"] == {"rl.kl.coef": ["0.2", "0.001"]}
    assert data["facts"]["seed"] == "0"


def test_same_input_same_numbers(written, tmp_path):
    again = report.write_report(tmp_path, example())
    assert again.json.read_text() == written[1].json.read_text()
    assert again.markdown.read_text() == written[1].markdown.read_text()


def test_headline_says_which_way_it_went():
    sft, better, same = system("sft", 12), system("rl", 30), system("rl", 13)
    rl = (Candidate("rl", "sft", ("reward",)),)
    up = headline((sft, better), rl)
    assert up.startswith("RL raises the rate of flawless answers from 30.0 % to 75.0 % (+45.0 points, 95 % interval +")
    assert "SFT lowers" in headline((sft, better), (Candidate("sft", "rl"),))
    assert "does not measurably change" in headline((sft, same), rl)
    assert headline((sft, better), rl, {"rl": [Flag("length", False, "")]}).endswith("hacking fail for RL: length.")
    assert headline((sft,)).startswith("SFT alone")
    bare = tuple(System(name, "", (GradedSample("请求", "好", 1, True),)) for name in ("sft", "rl"))
    assert "nothing can be said" in headline(bare, rl)


def scored(name, scores):
    return System(name, "", tuple(GradedSample(f"请求{i}", "好", 1, True, s) for i, s in enumerate(scores)))


def test_headline_never_praises_an_arm_by_its_own_signal():
    sft, rl = (scored(n, [{"reward": v + 0.1 * i} for i in range(30)]) for n, v in (("sft", 0.0), ("rl", 2.0)))
    assert "trained on this score, so it says nothing" in headline((sft, rl), (Candidate("rl", "sft", ("reward",)),))


def test_headline_ranks_the_arms_only_by_what_neither_was_trained_on():
    arms = (Candidate("rl", "sft", ("reward",)), Candidate("rl_judge", "sft", ("judge",)))
    sft, rl, judged = system("sft", 8), system("rl", 30), system("rl_judge", 18)
    ranked = headline((sft, rl, judged), arms)
    assert "RL raises" in ranked and "rl_judge raises" in ranked
    assert "Best arm by the rate of flawless answers: RL (RL 75.0 %, rl_judge 45.0 %; difference +30.0 points" in ranked
    assert "RL and rl_judge do not differ measurably" in headline((sft, rl, system("rl_judge", 29)), arms)
    doubted = headline((sft, rl, judged), arms, {"rl": [Flag("length", False, "")]})
    assert "It fails a check for reward hacking" in doubted
    own = [scored(n, [{"reward": float(i % 7), "judge": float(i % 2)} for i in range(20)]) for n in ("sft", "rl", "rl_judge")]
    assert "The arms are not ranked" in headline(own, arms)


def test_a_grader_without_headroom_gives_way_to_win_rates():
    sft, rl = (scored(n, [{"grader": float(i > m)} for i in range(200)]) for n, m in (("sft", 4), ("rl", 0)))
    wins = (Wins("rl", "sft", "judge", Figure(0.58, 0.52, 0.64, 200)),)
    told = headline((sft, rl), (Candidate("rl", "sft", ("reward",)),), wins=wins)
    assert "The grader's verdict cannot show a gain: SFT is at 97.5 %" in told
    assert "RL beats SFT: it wins 58.0 % of 200 comparisons by the judge, asked in both orders" in told
    own = headline((sft, rl), (Candidate("rl", "sft", ("judge",)),), wins=wins)
    assert "comparisons" not in own, "the judge is what this arm was trained on"


def test_win_rates_by_scores_leave_out_verdicts_and_what_was_asked():
    a, b = (
        scored(n, [{"judge": 1.0, "judge_p": p, "reward": p} for p in values])
        for n, values in (("sft", (0.6, 0.7)), ("rl", (0.8, 0.9)))
    )
    found = score_wins([(a, b)])
    assert [(w.a, w.b, w.by, w.share.value) for w in found] == [("rl", "sft", "judge_p", 1.0), ("rl", "sft", "reward", 1.0)]
    assert [w.by for w in score_wins([(a, b)], [Wins("rl", "sft", "judge", Figure(1.0, 0.3, 1.0, 2))])] == ["reward"]


def test_every_difference_is_shown(written):
    page = written[1].html.read_text(encoding="utf-8")
    assert all(f"<th>{b} − {a}</th>" in page for a, b in (("base", "sft"), ("sft", "rl")))
    three = example(
        systems=(system("base", 2), system("sft", 9), system("rl", 30), system("best_of", 12), system("rl_judge", 20)),
        candidates=(Candidate("rl", "sft"), Candidate("rl_judge", "sft")),
    )
    assert [(a.name, b.name) for a, b in three.pairs()] == [
        ("base", "sft"), ("sft", "rl"), ("sft", "best_of"), ("sft", "rl_judge"), ("rl", "rl_judge"),
    ]  # fmt: skip


def test_the_page_explains_metrics_and_marks_own_signals(written):
    page = written[1].html.read_text(encoding="utf-8")
    assert "applies to 20 of 40 prompts" in page and "without a valid score" not in page
    assert page.count(">own signal</span>") == 2, "reward in the comparison, and as the judge of a win rate"
    assert "no zero point, only differences have a meaning" in page and "allowed: ±30 %" in page
    for raw in ("None", "{&#39;", "Config("):
        assert raw not in page


def test_control_characters_do_not_reach_the_page(tmp_path):
    text = "好\x00\x1b[31m红\x9b\x85行\u2028二\r\n三\x7f\ud83d"
    rows = tuple(GradedSample("请求\x07", text, 1, True, {"my\x02score": 0.5}) for _ in range(3))
    found = report.write_report(tmp_path, report.Report("a\x01b", (System("base", "", rows),), facts={"k\x03": "v\x04"}))
    for path in (found.html, found.markdown, found.csv, found.latex):
        raw = path.read_text(encoding="utf-8")
        assert not [c for c in raw if c not in "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)], path


def test_unknown_names_and_ragged_tables_are_refused(tmp_path):
    with pytest.raises(UserError, match="'ppo'"):
        report.write_report(tmp_path, example(candidates=(Candidate("ppo", "sft"),)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="row 0"):
        report.Table("t", ("a", "b"), (("x",),))


def test_one_system_alone_and_other_scores(tmp_path):
    rows = tuple(GradedSample("请求", "好\ud800", 1, True, {"my_score": 0.25 * i}) for i in range(3))
    paths = report.write_report(tmp_path, report.Report("one", (System("base", "", rows),)))
    data = json.loads(paths.json.read_text(encoding="utf-8"))
    assert data["rows"]["base"]["my_score"]["value"] == 0.25 and data["flags"] == []


def test_without_a_chinese_font_plots_fall_back_and_say_so(monkeypatch):
    assert plots.plot_label("基线", "system 1", None) == "system 1"
    assert plots.plot_label("base", "system 1", None) == "base"
    for module in (plots, report):
        monkeypatch.setattr(module, "cjk_font", lambda: None)
    renamed = example(systems=(system("基线", 2), system("rl", 5)), candidates=(Candidate("rl", "基线"),), start="基线")
    assert report.NO_FONT in report._content(renamed)["notes"]
    assert report.NO_FONT not in report._content(example(curves={}))["notes"]


def test_curves_are_thinned_and_gaps_stay():
    points = [(float(i), math.nan if i == 3 else 1.0) for i in range(1000)]
    thin = plots.thinned(points)
    assert len(thin) <= plots.MAX_POINTS and all(v == 1.0 for _, v in thin)
    assert math.isnan(plots.running_mean([1.0, math.nan, 3.0], 1)[1])
    assert plots.running_mean([1.0, 2.0, 6.0], 1) == [1.5, 3.0, 4.0]
    with pytest.raises(ValueError, match="2 steps but 1"):
        plots.Curve("x", [0, 1], [0.0])


def test_bars_of_missing_and_negative_values():
    panels = {
        "reward": [Figure(-1.5, -2.0, -1.0, 9), Figure(None, None, None, 0)],
        "rate": [Figure(1.0, 0.7, 1.0, 9)] * 2,
    }
    assert [p.svg[:4] for p in plots.bar_plots(["a", "b"], panels, [False, True]).values()] == ["<svg"] * 2


def test_console_table_shows_brackets_as_text():
    table = console.console_table((system("[red]", 2), system("sft", 12)))
    terminal = Console(file=io.StringIO(), width=160)
    terminal.print(table)
    text = terminal.file.getvalue()
    assert "[red]" in text and "30.0 % [18.1, 45.4]" in text


def test_import_is_cheap():
    code = "import sys, rlaif_jax.evaluation.report; print({'matplotlib', 'jinja2', 'rich', 'jax'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
