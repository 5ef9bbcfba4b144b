"""Mutated requests and answers: rules that read language end without an exception, in milliseconds."""

import random

import pytest

from rlaif_jax.data import corpus
from rlaif_jax.language import EN, LANGUAGES, ZH
from rlaif_jax.language.pleas import without_pleas
from tests.fuzz.mutate import bounded

_PIECES = (
    "两三", "十二十", "几十", "百", "万", "俩", "半", "1e9", "９９９９９９９", "0.5", "-3", "①", "〇", "个字", "字", "句", "条",
    "段", "行", "左右", "以内", "至少",
    "不超过", "第", "每", "到", "~", "“", "”", "「", "开头", "别出现“”", "two or", "a dozen", "half a", "hundred", " words",
    "-word ", "at least ",
    "no more than ", "or so", "between ", "each ", "\x00", "\ud83d", "\u2028", "\u200b", "٣", "²", "１", "\n", "。", "“" * 50,
    "不" * 50, "9" * 60, "三" * 40,
)  # fmt: skip
_ENGLISH = (
    "Write two or three sentences for my mother.", "At least ten words, at most 1,000 words, please.",
    "A 20-word wish in a dozen lines.",
    'Do not use "love" or "heart", and start with "Dear".', "between ten and thirty words, each line in 5 words",
    "no more than 140 characters",
)  # fmt: skip


def mutated(count: int, seed: int) -> list[str]:
    """`count` requests of the corpus and English ones, each changed at random in one to four places."""
    rng = random.Random(seed)
    made = corpus.generate(seed, corpus.CorpusConfig(300, 20, 20, 20, 20))
    sources, found = [row["prompt"] for row in made.sft] + list(_ENGLISH) * 30, []
    for _ in range(count):
        text = rng.choice(sources)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(text) + 1)
            stop = start + rng.choice((0, 0, 1, 2, 5))
            text = text[:start] + rng.choice((*_PIECES, text[start:stop], chr(rng.randrange(0xD000)))) + text[stop:]
        found.append(text)
    return found


def check_constraints(count: int) -> None:
    """No exception, no hang; a size has bounds, and a request is read alike each time."""
    stated = 0
    with bounded(seconds=2.0 + count / 500):
        for request, response in zip(mutated(count, 1), reversed(mutated(count, 2)), strict=True):
            for language in LANGUAGES.values():
                assert language.keeps_constraints(request, response) in (True, False, None)
                sizes = language.sizes(request)
                assert all(s.low >= 0 and s.high >= s.low - 1 and s.unit in language.counts for s in sizes)
                stated += len(sizes)
    assert stated > count / 10  # the mutations leave constraints to be read


def test_no_request_breaks_the_constraint_rule():
    check_constraints(3000)


@pytest.mark.slow
def test_no_request_breaks_the_constraint_rule_slow():
    check_constraints(20000)


@pytest.mark.parametrize(
    "part",
    [
        "10-", "两三", "三", "1", "至少", "字数", "别出现“", "以“", "at least ", "a dozen ", "each 5 words ", "10 to ",
        'without "',
        "不要用“愿”",
    ],
)  # fmt: skip
def test_long_requests_take_no_time(part):
    text = part * (40000 // len(part)) + "个字 words"
    with bounded(seconds=1.0):
        for language in (ZH, EN):
            language.keeps_constraints(text, text)


def check_pleas(count: int) -> None:
    """No exception, no hang; what is kept is a part of the answer, never more than that."""
    with bounded(seconds=2.0 + count / 200):
        for request in mutated(count, 3):
            kept = without_pleas(request)
            assert len(kept) <= len(request) and set(kept) <= set(request)


def test_no_answer_breaks_the_defence():
    check_pleas(1500)


@pytest.mark.slow
def test_no_answer_breaks_the_defence_slow():
    check_pleas(20000)
