"""Sizes in requests: number phrases, relations and units of each language, and what an answer must have."""

import hashlib

import pytest

from rlaif_jax.data import corpus
from rlaif_jax.language import EN, ZH, en_sizes, zh_sizes
from rlaif_jax.language.base import MANY

ZH_NUMBERS = {
    "16": (16, 16), "十": (10, 10), "十六": (16, 16), "二十": (20, 20), "二十五": (25, 25), "两": (2, 2), "零": (0, 0),
    "一百": (100, 100), "一百二": (120, 120), "一百零二": (102, 102), "三百五十": (350, 350), "一千二百": (1200, 1200),
    "两万": (20000, 20000), "一万二": (12000, 12000), "1.5万": (15000, 15000), "3千": (3000, 3000), "百": (100, 100),
    "俩": (2, 2), "仨": (3, 3), "两三": (2, 3), "一两": (1, 2), "三五": (3, 5), "三两": (2, 3), "七八": (7, 8),
    "三四十": (30, 40), "一二十": (10, 20), "二三十": (20, 30), "十七八": (17, 18), "二十七八": (27, 28), "三四百": (300, 400),
    "一百五六十": (150, 160), "十几": (11, 19), "二十几": (21, 29), "二十多": (21, 29), "30余": (31, 39),
    "几": None, "几十": None, "半": None, "两个半": None, "二十来": None, "十二十": None, "三一": None, "五三": None,
    "百百": None,
    "1.5": None, "一百多": None, "": None, "万万万": None, "九十": (90, 90), "三八": None,
}  # fmt: skip


@pytest.mark.parametrize("text", ZH_NUMBERS)
def test_chinese_number_phrases(text):
    assert zh_sizes.interval(text) == ZH_NUMBERS[text]


EN_NUMBERS = {
    "16": 16, "one": 1, "sixteen": 16, "twenty": 20, "Twenty-five": 25, "ninety nine": 99, "a dozen": 12, "half a dozen": 6,
    "two dozen": 24, "a hundred": 100, "two hundred and fifty": 250, "one thousand": 1000,
}  # fmt: skip


@pytest.mark.parametrize("text", EN_NUMBERS)
def test_english_number_phrases(text):
    assert en_sizes.interval(text) == (EN_NUMBERS[text], EN_NUMBERS[text])


C, S, IT, L, P, W = "characters", "sentences", "items", "lines", "paragraphs", "words"
ZH_SIZES = {
    # spoken numbers
    "给爸爸写两三条祝福": [(2, 3, IT)], "三五句就好": [(3, 5, S)], "一两句话": [(1, 2, S)], "来一段七八个字的": [(7, 8, C)],
    "三四十字": [(30, 40, C)], "二三十个字": [(20, 30, C)], "十几个字": [(11, 19, C)], "二十多个字": [(21, 29, C)],
    # at least, at most
    "至少12个字": [(12, MANY, C)], "最少写三句": [(3, MANY, S)], "不少于十二个字": [(12, MANY, C)],
    "12个字以上": [(12, MANY, C)],
    "别少于12字": [(12, MANY, C)], "起码要有两条": [(2, MANY, IT)], "超过12个字": [(13, MANY, C)],
    "不低于12个字": [(12, MANY, C)],
    "不超过12个字": [(0, 12, C)], "不要超过三十字": [(0, 30, C)], "至多两句": [(0, 2, S)], "最多三条": [(0, 3, IT)],
    "2000字以内": [(0, 2000, C)], "十个字之内": [(0, 10, C)], "二十字以下": [(0, 20, C)], "不多于12个字": [(0, 12, C)],
    "少于12个字": [(0, 11, C)], "不到12个字": [(0, 11, C)], "限20字": [(0, 20, C)], "控制在20字以内": [(0, 20, C)],
    "不超过两三句": [(0, 3, S)], "至少两三句": [(2, MANY, S)], "一百字以内": [(0, 100, C)], "一万字以内": [(0, 10000, C)],
    # ranges
    "写12到40个字": [(12, 40, C)], "12-40字": [(12, 40, C)], "12至40字": [(12, 40, C)], "12~40个字": [(12, 40, C)],
    "１２～４０字": [(12, 40, C)], "十二到四十个字之间": [(12, 40, C)], "20字到30字": [(20, 30, C)], "两至三句": [(2, 3, S)],
    "一句或两句": [(1, 2, S)], "40到12字": [(12, 40, C)], "二十五到三十个字": [(25, 30, C)],
    # exactly
    "写八个字": [(8, 8, C)], "正好8字": [(8, 8, C)], "一共二十个字": [(20, 20, C)], "１６个字": [(16, 16, C)],
    "写仨句子": [(3, 3, S)],
    "只写一句": [(1, 1, S)], "写四行": [(4, 4, L)], "分三段写": [(3, 3, P)], "两个自然段": [(2, 2, P)],
    # the unit in front, several at once
    "字数不超过20": [(0, 20, C)], "字数在12到40之间": [(12, 40, C)], "字数20以内": [(0, 20, C)], "字数：12-40": [(12, 40, C)],
    "至少12个字，最多40个字": [(12, MANY, C), (0, 40, C)], "写三条，每条20字以内": [(3, 3, IT)],
    "不少于12字且不超过40字": [(12, MANY, C), (0, 40, C)],
    # nothing that is certain
    "12个字左右": [], "大约12个字": [], "十二个字上下": [], "约二十字": [], "二十来个字": [], "近20字": [], "差不多20个字": [],
    "写第二句": [], "接着第三条写": [], "前两句要押韵": [], "这两句不好": [], "再写两句": [], "另外两条": [], "几句": [],
    "半句": [],
    "写一条祝福": [], "一句": [], "十二十个字": [], "四字成语": [], "要有健康两个字": [], "含“平安”两个字": [],
    "每条不超过20个字": [],
    "每句话20字以内": [], "不要写20个字": [], "20或30个字": [], "两个字母": [], "三句话不离本行": [], "至少20字以内": [],
    "两条腿": [],
    "200字": [], "数十个字以内": [], "": [], "字": [], "两": [], "2024年10月1日": [], "千言万语": [], "三百六十行": [],
}  # fmt: skip
EN_SIZES = {
    "two or three sentences": [(2, 3, S)], "Write at least ten words": [(10, MANY, W)], "no more than 20 words": [(0, 20, W)],
    "under 20 words": [(0, 19, W)], "over 20 words": [(21, MANY, W)], "10-30 words": [(10, 30, W)],
    "10 to 30 words": [(10, 30, W)],
    "10 – 30 words": [(10, 30, W)], "between ten and thirty words": [(10, 30, W)], "in a dozen words": [(12, 12, W)],
    "in a couple of sentences": [(2, 3, S)], "a one-sentence wish": [(1, 1, S)], "a 20-word birthday greeting": [(20, 20, W)],
    "write a two-line poem": [(2, 2, L)], "20 words max": [(0, 20, W)], "max. 20 words": [(0, 20, W)],
    "20+ words": [(20, MANY, W)],
    "20 words or fewer": [(0, 20, W)], "20 words or more": [(20, MANY, W)], "no fewer than 5 words": [(5, MANY, W)],
    "20 words at most": [(0, 20, W)], "5 words minimum": [(5, MANY, W)], "in one hundred words": [(100, 100, W)],
    "less than 1,000 words": [(0, 999, W)], "up to two hundred and fifty words": [(0, 250, W)],
    "limit it to 20 words": [(0, 20, W)],
    "keep it under 140 characters": [(0, 139, C)], "more than one sentence": [(2, MANY, S)], "in three paragraphs": [(3, 3, P)],
    "shorter than 9 words": [(0, 8, W)], "no longer than 9 words": [(0, 9, W)], "exactly 3 bullet points": [(3, 3, IT)],
    "two sentences, at most 8 words": [(0, 8, W)], "<= 9 words": [(0, 9, W)], "one or two sentences": [(1, 2, S)],
    "about 20 words": [], "in about 20 words": [], "around 20 words": [], "roughly 10-30 words": [], "in 20 or so words": [],
    "in 20 words or so": [], "in 20 words, give or take": [], "at most about 20 words": [], "the second line": [],
    "a few words": [], "in other words": [], "start with a two-word greeting": [], "do not use exactly 5 words": [],
    "10 words": [],
    "at least 20 words or fewer": [], "in 3 or 7 words": [], "": [], "a couple": [], "each line in 5 words": [],
    "the 2 lines": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("language", "text", "wanted"),
    [(ZH, text, sizes) for text, sizes in ZH_SIZES.items()] + [(EN, text, sizes) for text, sizes in EN_SIZES.items()],
)
def test_sizes_in_a_request(language, text, wanted):
    assert [(s.low, s.high, s.unit) for s in language.sizes(text)] == wanted


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("给妹妹写两三句生日祝福", False), ("至少12个字", True), ("12个字以上", True), ("超过12个字", True),
        ("写12到30个字", True),
        ("1500字以内", True), ("12个字左右", None), ("写第三句", None), ("不超过12个字", False), ("19个字", True),
        ("写三句", False),
        ("写五条", False), ("写一两句", True),
    ],
)  # fmt: skip
def test_what_an_answer_of_nineteen_characters_keeps(prompt, kept):
    answer = "祝妹妹生日快乐，学业进步，天天开心，前程似锦！"
    assert ZH.count(answer) == 19 and ZH.keeps_constraints(prompt, answer) is kept


def test_chinese_sentences_may_be_verse():
    assert ZH.keeps_constraints("写两句", "祝您生日快乐。愿您平安。") is True
    assert ZH.keeps_constraints("写两句", "春风得意，前程似锦。") is None  # two lines of verse, one sentence
    assert ZH.keeps_constraints("写两句", "祝您生日快乐。") is False
    assert ZH.keeps_constraints("写两句", "1. 祝您快乐。\n2. 愿您平安。") is True
    assert ZH.keeps_constraints("写三条", "祝您快乐\n愿您平安\n万事如意") is True  # lines are items, too
    assert ZH.keeps_constraints("写三条", "- 祝您快乐\n- 愿您平安") is False
    assert ZH.keeps_constraints("分两段写", "祝您快乐。\n\n愿您平安。") is True


def test_english_characters_may_leave_out_spaces():
    assert EN.keeps_constraints("at most 7 characters", "a b c d") is True
    assert EN.keeps_constraints("at most 5 characters", "a b c d") is None
    assert EN.keeps_constraints("at most 3 characters", "a b c d") is False


@pytest.mark.parametrize(
    ("prompt", "good", "bad"),
    [
        ("别出现“快乐”和“健康”", "愿你平安", ("祝你快乐", "祝你健康")),
        ("不要用“愿”“祝”“盼”字", "一切都好", ("愿你好", "祝你好", "盼你好")),
        ("别出现“快乐”，也不要出现“健康”", "愿你平安", ("祝你快乐", "祝你健康")),
        ("不能出现「快乐」、「健康」", "愿你平安", ("祝你快乐", "祝你健康")),
        ("以“愿”字开头", "愿你好", ("祝你好",)),
        ("不要用“愿”字开头", "祝你如愿", ("愿你好",)),
        ("用“万事如意”结尾", "祝你万事如意！", ("万事如意，祝你好",)),
    ],
)
def test_every_forbidden_word_counts(prompt, good, bad):
    assert ZH.keeps_constraints(prompt, good) is True
    assert [ZH.keeps_constraints(prompt, text) for text in bad] == [False] * len(bad)


def test_verdicts_on_the_bundled_corpus_are_pinned():
    made = corpus.generate(11, corpus.CorpusConfig(400, 1500, 20, 20, 20))
    rows = [(row["prompt"], row[key]) for row in made.pairs for key in ("chosen", "rejected")]
    verdicts = "".join({True: "1", False: "0", None: "-"}[ZH.keeps_constraints(*row)] for row in rows)
    assert len(verdicts) == 2700 and hashlib.sha256(verdicts.encode()).hexdigest()[:16] == "0ec0c3798fdfdd96"
