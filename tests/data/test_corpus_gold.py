"""The gold scorer: it agrees with the generators, and no degenerate text passes it."""

from __future__ import annotations

import random

import pytest

from rlaif_jax.data import corpus

MUM = corpus.Request("给妈妈写一句生日祝福", "生日", "妈妈")
PAL = corpus.Request("给朋友写一句中秋节祝福", "中秋节", "朋友")
GOOD_MUM = "亲爱的妈妈，生日快乐！烛光映着您的笑脸，愿您年年今日都尽兴。"


def _requests(seed: int, count: int) -> list[corpus.Request]:
    rng = random.Random(seed)
    return [corpus.sample_request(rng) for _ in range(count)]


def test_good_responses_are_excellent():
    rng = random.Random(7)
    for request in _requests(7, 3000):
        text = corpus.good_response(rng, request)
        assert corpus.gold_flaws(request, text) == (), (request, text)
        assert corpus.is_compliant(request, text) is (True if request.constraint else None)


def test_flawed_responses_have_the_planted_flaw_and_hardly_another():
    rng, exact, total = random.Random(8), 0, 0
    for request in _requests(8, 500):
        for flaw in rng.sample(list(corpus.applicable_flaws(request)), 4):
            found = corpus.gold_flaws(request, corpus.flawed_response(rng, request, flaw))
            assert flaw in found, (request, flaw)
            exact, total = exact + (found == (flaw,)), total + 1
    assert exact / total >= 0.97


def test_every_flaw_can_be_planted():
    rng, planted = random.Random(9), set()
    for request in _requests(9, 400):
        planted |= set(corpus.applicable_flaws(request))
    assert planted == set(corpus.FLAWS)
    with pytest.raises(ValueError, match="does not apply"):
        corpus.flawed_response(rng, corpus.Request("x", "教师节", "老师"), "wrong_recipient")


@pytest.mark.parametrize("text", [
    "", "   \n", "。", "，。！" * 20, "亲爱的，" * 12, "万事如意，心想事成。", "祝您身体健康，" * 5 + "万事如意。",
    MUM.text, MUM.text + "。", "hello world.", "asdf！", "生日生日妈妈妈妈祝福", "生日，妈妈，祝福，烛光，愿望。",
    "亲爱的妈妈生日快乐烛光映着您的笑脸愿您年年今日都尽兴", GOOD_MUM * 2, GOOD_MUM[:-1], GOOD_MUM + "亲爱的妈妈",
    GOOD_MUM + "关注公众号。", GOOD_MUM.replace("！", "！！"), GOOD_MUM.replace("妈妈", "【名字】"), "，" + GOOD_MUM,
    "生日快乐，" * 3 + "烛光映着您的笑脸，愿您年年今日都尽兴。", "1." + GOOD_MUM, GOOD_MUM + "\n" + GOOD_MUM,
    "妈妈，妈妈，生日快乐，烛光映着您的笑脸，愿您许的愿望都作数。", "\0" * 9, "🎂" * 20, "您" * 40 + "。",
])  # fmt: skip
def test_degenerate_texts_are_not_excellent(text):
    assert corpus.is_excellent(MUM, GOOD_MUM)
    for request in (MUM, PAL, *_requests(10, 100)):
        assert not corpus.is_excellent(request, text)


def test_novel_combinations_of_the_phrases_pass():
    assert corpus.is_excellent(MUM, "妈妈，一碗长面盛满心意，希望您被岁月温柔以待！")
    assert corpus.is_excellent(MUM, "祝您吹灭蜡烛好梦成真，蛋糕的甜漫过了房间，想把最好的都给您。")
    assert corpus.is_excellent(MUM, "生日快乐！烛光映着您的笑脸；祝愿您新的一岁万般可爱！")


def test_every_beginning_of_a_good_answer_is_flawed():
    rng = random.Random(11)
    for request in _requests(11, 250):
        text = corpus.good_response(rng, request)
        for n in range(len(text)):
            assert not corpus.is_excellent(request, text[:n]), (request, text[:n])


def test_good_answers_to_another_occasion_are_flawed():
    rng, found = random.Random(12), _requests(12, 800)
    for a, b in zip(found[::2], found[1::2], strict=True):
        if a.occasion != b.occasion:
            assert not corpus.is_excellent(a, corpus.good_response(rng, b))


def test_echoed_requests_and_scrambled_answers_are_flawed():
    rng = random.Random(13)
    for request in _requests(13, 300):
        assert not corpus.is_excellent(request, request.text)
        assert not corpus.is_excellent(request, request.text + "。")
        chars = list(corpus.good_response(rng, request))
        rng.shuffle(chars)
        assert not corpus.is_excellent(request, "".join(chars))


def _flaws(text: str, **fields) -> tuple[str, ...]:
    base = {"text": "x", "occasion": "生日", "recipient": "妈妈"}
    return corpus.gold_flaws(corpus.Request(**{**base, **fields}), text)


def test_what_one_text_is_for_different_requests():
    text = "生日快乐！蛋糕的甜漫过房间，愿你许的愿望都作数，多吃几口也不怕胖。"
    friend = {"recipient": "朋友"}
    assert _flaws(text, **friend) == ()
    assert _flaws(text, tone="亲切") == ()
    assert _flaws(text) == ("wrong_register",)
    assert _flaws(text, **friend, relation="正在减肥的") == ("taboo",)
    assert _flaws(text, **friend, relation="戒了酒的") == ()
    assert _flaws(text, **friend, tone="幽默") == ("wrong_tone",)
    assert _flaws(text, **friend, constraint=("mention", "蛋糕")) == ()
    assert _flaws(text, **friend, constraint=("mention", "气球")) == ("ignored_detail",)
    assert _flaws(text, **friend, constraint=("avoid", "快乐")) == ("ignored_detail",)
    assert _flaws(text, **friend, constraint=("items", 2)) == ("wrong_count",)
    assert _flaws(text, **friend, constraint=("max_chars", 20)) == ("wrong_length",)
    assert _flaws(text, **friend, constraint=("start", "愿")) == ("wrong_form",)
    assert _flaws(text, **friend, occasion="毕业") == ("off_occasion",)
    assert _flaws("生辰吉乐，情谊长青。", **friend, constraint=("chars", 8)) == ()
    assert _flaws("生辰吉乐，情谊长青。", **friend) == ("too_short",)
    assert _flaws("生辰吉乐，情谊长青。", constraint=("chars", 8)) == ("wrong_relation",)
