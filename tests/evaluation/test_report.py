"""The three files of a report: honest headline, escaped text, finite numbers, nothing fetched from elsewhere."""

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
from rlaif_jax.evaluation import plots, report
from rlaif_jax.evaluation.compare import GradedSample, System
from rlaif_jax.evaluation.hacking import Flag
from rlaif_jax.evaluation.headline import headline
from rlaif_jax.evaluation.scores import Figure

NASTY = "<script>alert(1)</script>{{7*7}}|`x`\n[a](http://x) $y$ &amp;"


def system(name, good, response="", n=40):
    """`good` of n answers are excellent, the first ones."""
    rows = []
    for i in range(n):
        scores = {"excellent": float(i < good), "compliance": None if i % 2 else 1.0, "reward": i / n + good / n}
        rows.append(GradedSample(f"请求{i}", response or f"祝福{name}{i}", 8, True, scores))
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
        "baseline_flags": (Flag("stock texts", False, "reward 3.1 for ，。！"), Flag("other", None, "no data")),
    }  # fmt: skip
    return report.Report(**(values | changes))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "report"
    return folder, report.write_report(folder, example())


def test_three_files_and_no_leftovers(written):
    folder, paths = written
    assert {p.name for p in folder.iterdir()} == {"report.html", "report.md", "report.json"}
    assert paths == report.ReportPaths(*(folder / f"report.{kind}" for kind in ("html", "md", "json")))


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
    assert sum(name == "img" for name, _ in tags.found) == 3  # bars, sft, rl: the stage without a value has no plot


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
    assert len(blocks) == 5  # comparison, checks, extra table, samples, facts
    assert all(len(set(b)) == 1 and len(b) > 2 for b in blocks)


def test_json_has_every_number(written):
    data = json.loads(written[1].json.read_text(encoding="utf-8"), parse_constant=lambda c: pytest.fail(c))
    assert data["rows"]["rl"]["excellent"]["value"] == 0.75
    assert data["rows"]["rl"]["compliance"] == data["rows"]["rl"]["compliance"] | {"n": 20, "missing": 20}
    assert set(data["rows"]["sft"]["distinct_2"]) == {"value", "low", "high", "n", "missing"}
    assert set(data["differences"]) == {"sft - base", "rl - base", "rl - sft"}
    assert data["differences"]["rl - sft"]["excellent"]["value"] == pytest.approx(0.45)
    assert {"name": "other", "ok": None, "detail": "no data"} in data["flags"]
    assert data["facts"]["seed"] == "0"


def test_same_input_same_numbers(written, tmp_path):
    again = report.write_report(tmp_path, example())
    assert again.json.read_text() == written[1].json.read_text()
    assert again.markdown.read_text() == written[1].markdown.read_text()


def test_headline_says_which_way_it_went():
    sft, better, same = system("sft", 12), system("rl", 30), system("rl", 13)
    up = headline((sft, better), (sft, better))
    assert up.startswith("RL raises the rate of flawless answers from 30.0 % to 75.0 % (+45.0 points, 95 % interval +")
    assert "SFT lowers" in headline((sft, better), (better, sft))
    assert "does not measurably change" in headline((sft, same), (sft, same))
    assert headline((sft, better), (sft, better), [Flag("length", False, "")]).endswith("fail: length.")
    assert headline((sft,), None).startswith("SFT alone")
    bare = System("rl", "", (GradedSample("请求", "好", 1, True),))
    assert "nothing can be said" in headline((bare, bare), (bare, bare))


def test_unknown_names_and_ragged_tables_are_refused(tmp_path):
    with pytest.raises(UserError, match="'ppo'"):
        report.write_report(tmp_path, example(candidate="ppo"))
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
    renamed = example(systems=(system("基线", 2), system("rl", 5)), reference="基线")
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
    assert plots.bar_plot(["a", "b"], panels, [False, True]).svg.startswith("<svg")


def test_console_table_shows_brackets_as_text():
    table = report.console_table((system("[red]", 2), system("sft", 12)))
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    text = console.file.getvalue()
    assert "[red]" in text and "30.0 % [18.1, 45.4]" in text


def test_import_is_cheap():
    code = "import sys, rlaif_jax.evaluation.report; print({'matplotlib', 'jinja2', 'rich', 'jax'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
