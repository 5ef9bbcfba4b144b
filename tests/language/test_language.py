"""What is known of each language, and which one a text is in."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rlaif_jax
from rlaif_jax.errors import UserError
from rlaif_jax.language import EN, LANGUAGES, ZH, en, get_language, is_han, language_of

WORDS = " ".join(["word"] * 50)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("给老师写一条祝福", "zh"), ("Write a greeting", "en"), ("", "en"), ("12!", "en"),
        ("请把 Happy Birthday 翻译", "zh"), ('Do not use "万事如意" in your greeting', "en"), ("用“Good luck”开头写三句", "zh"),
    ],
)  # fmt: skip
def test_a_text_is_in_the_language_of_its_script(text, name):
    assert language_of(text).name == get_language("auto", text).name == name


def test_languages_go_by_name():
    assert get_language("zh", "English") is ZH and get_language("en") is EN
    with pytest.raises(UserError, match="expected zh, en or auto"):
        get_language("de")
    for language in LANGUAGES.values():
        assert "{problem}" in language.ask_again and language.probe and language.unit in ("characters", "words")


def test_units_and_counts():
    assert ZH.units("新 年，好") == ["新", "年", "，", "好"] and ZH.bare_units("新 年，好") == ["新", "年", "好"]
    assert ZH.ngrams("新年，好", 2) == ["新年", "年，", "，好"] and ZH.ngrams("新年，好", 2, punctuation=False) == ["新年", "年好"]
    words = ["don't", "stop", "it's", "3.5", "km"]
    assert EN.units("Don't stop, it's 3.5 km!") == EN.bare_units("Don't stop - it's 3.5 km") == words
    assert EN.ngrams("To be or not", 3) == ["to be or", "be or not"] and EN.ngrams("one", 2) == []
    assert EN.count("1. Well-known faces\n2. Old ones") == 4 and EN.length("Hi, Ann!") == 2 and EN.count("") == 0
    assert ZH.count("1. 甲，乙。2. 丙") == 3 and ZH.length("甲 乙") == 3
    with pytest.raises(ValueError, match="n >= 1"):
        EN.ngrams("a", 0)


def test_english_sentences_and_items():
    assert en.sentences("Dear Dr. Lee, all the best. See you at 3.30! Yours,\nAnn") == 3
    assert en.sentences("Happy birthday\nEnjoy it") == 2 and en.sentences("Wow... really?! \"Yes.\" Good") == 4
    assert en.sentences("") == 0 and en.sentences("...") == 0
    assert en.items("1. a\n2. b") == 2 and en.items("- a\n* b\n• c") == 3 and en.items("1. a 2. b 3. c") == 3
    assert en.items("I am 30. Then\nlunch") == 2 and en.items("apples") == 1


KEPT = [
    ("at most 5 words", "Good luck", WORDS),
    ("Wish her luck in no more than twenty-five words.", "Good luck", WORDS),
    ("exactly 3 words", "You did it", "You did"),
    ("Say it in 3 words.", "You did it", "You really did it"),
    ("in 20-30 words, please", " ".join(["word"] * 25), WORDS),
    ("in 10 words or fewer", "You did it", WORDS),
    ("Do not use more than 5 words", "You did it", WORDS),
    ("It should not be longer than 5 words", "You did it", WORDS),
    ("Use at least 10 words", WORDS, "You did it"),
    ("fewer than 4 words", "You did it", "You really did it"),
    ("Write two sentences for my mother.", "Hi, mum. I love you.", "Hi, mum."),
    ("Reply in one or two sentences", "Hi.", "Hi. Yes. No."),
    ("between 2 and 3 sentences", "Hi. Yes.", "Hi."),
    ("Give me three items", "1. a\n2. b\n3. c", "1. a\n2. b"),
    ("a list of 3 bullet points", "- a\n- b\n- c", "- a"),
    ("two-line poem", "a\nb", "a b"),
    ("in four lines", "a\nb\nc\nd", "a b c d"),
    ('Start with "Dear Anna"', "dear Anna, well done", "Hello Anna"),
    ("It begins with the word 'Hi'", "Hi Ann", "History"),
    ("Start your message with “Hey”", "“Hey you", "You"),
    ('Don\'t start with "Dear"', "Hello", "Dear Ann"),
    ('Do not use "love" or "heart"', "My lovely friend", "My Heart"),
    ("don’t mention the word 'work'", "Nice workshop", "Back to work."),
    ("without using the phrase \"all the best\"", "Take care", "All the best!"),
]  # fmt: skip


@pytest.mark.parametrize(("request_text", "good", "bad"), KEPT)
def test_english_constraints(request_text, good, bad):
    assert EN.keeps_constraints(request_text, good) is True
    assert EN.keeps_constraints(request_text, bad) is False


def test_all_constraints_count():
    request = 'Write two sentences, at most 8 words, and do not mention "work".'
    assert EN.keeps_constraints(request, "Well done, Ann. Enjoy it!") is True
    assert EN.keeps_constraints(request, "Well done at work, Ann. Enjoy it!") is False
    assert EN.keeps_constraints(request, "Well done, Ann.") is False


@pytest.mark.parametrize(
    "request_text",
    [
        "Write a greeting for my boss.", "in about 20 words", "around 20 words", "each line in exactly 5 words", "a few words",
        "In other words, congratulate him", "10 words", "the first two sentences of the letter", "write 2 more sentences",
        "Each sentence should start with 'A'", "at most 5 words per line", "sentences of at most 5 words",
        "Don't write in 3 sentences", "Do not forget her", "Include the word \"luck\"", "不超过五个字",
    ],
)  # fmt: skip
def test_unknown_forms_do_not_apply(request_text):
    assert EN.keeps_constraints(request_text, WORDS) is None


@pytest.mark.parametrize("part", ["in ", "not ", "a ", "1 ", '"', "no more than ", "x", "1. a\n", "零"])
def test_long_texts_take_no_time(part):
    text, start = "not " + part * 20000, time.perf_counter()
    for language in LANGUAGES.values():
        language.keeps_constraints(text, text)
    assert time.perf_counter() - start < 5


def test_the_package_and_the_fonts_load_without_jax():
    code = "import rlaif_jax.language.fonts, sys; assert not {'jax', 'numpy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_chinese_is_data_found_in_its_places_only():
    root = Path(rlaif_jax.__file__).parent
    places = ("data/corpus/", "feedback/prompts/", "feedback/rules/", "language/")
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if not name.startswith(places):
            lines = path.read_text(encoding="utf-8").splitlines()
            found = [f"{name}:{i}" for i, line in enumerate(lines, 1) if any(is_han(c) or "\u3001" <= c <= "\u303f" for c in line)]
            assert not found, f"a language's words belong to {', '.join(places)}"


def test_the_packs_import_no_more_than_errors_and_sharding_no_more_of_them_than_fonts():
    root = Path(rlaif_jax.__file__).parent
    for folder, allowed in (("language", ("errors", "language")), ("sharding", ("errors", "ranges", "sharding", "language.fonts"))):
        for path in (root / folder).glob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            modules = [n.module for n in nodes if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("rlaif_jax")]
            for module in modules:
                name = module.removeprefix("rlaif_jax.")
                assert any(name == a or name.startswith(f"{a}.") for a in allowed), f"{path} imports {module}"
