"""Chat templates: what they strip, open blocks, fixed days, limits of time and memory, and texts that they cannot see."""

import json
import time

import pytest

from rlaif_jax.data.chat_template import CHATML, ChatTemplate
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from tests.data import folders

USER, ANSWER = {"role": "user", "content": " \n写一条祝福\n"}, {"role": "assistant", "content": "\n\n 万事如意 "}
SYSTEM = {"role": "system", "content": "You are kind.\n"}
EACH = "{% for m in messages %}"
END = "{% endfor %}"


def text_of(template, messages, generate, **values):
    return "".join(text for text, _ in ChatTemplate(template, values, "x").parts(messages, generate))


def rendered(template, messages, generate, **values):
    """The same chat, by transformers alone."""
    from transformers.utils.chat_template_utils import render_jinja_template

    options = {"enable_thinking": False, **values}
    return render_jinja_template([messages], chat_template=template, add_generation_prompt=generate, **options)[0][0]


@pytest.mark.parametrize("template", [CHATML, folders.LLAMA, folders.CHATML, folders.QWEN3])
@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [USER, ANSWER], [SYSTEM, USER, ANSWER, USER]], ids=len)
@pytest.mark.parametrize("generate", [True, False])
def test_a_chat_is_laid_out_as_by_transformers(template, messages, generate):
    assert text_of(template, messages, generate, bos_token="<B>") == rendered(template, messages, generate, bos_token="<B>")


@pytest.mark.parametrize(
    "change", ["", " | trim", ".strip()", ".lstrip('\n')", ".rstrip()", ".strip('\n')", ".lstrip() + '\n'"]
)  # fmt: skip
def test_white_space_is_stripped_as_the_template_does(change):
    template = EACH + "{{ '\n' + m.content" + change + " }}\n" + END
    for messages in ([USER, ANSWER], [ANSWER, USER, {"role": "user", "content": "\n"}]):
        assert text_of(template, messages, False) == rendered(template, messages, False)


def test_an_empty_turn_stays_empty():
    template = EACH + "{% if m.content %}[{{ m.content }}]{% else %}nothing{% endif %}" + END
    assert text_of(template, [{"role": "user", "content": ""}, USER], False) == "nothing[ \n写一条祝福\n]"


def test_a_template_for_content_parts_gets_parts():
    assert text_of(folders.PARTS, [SYSTEM, USER], True) == text_of(folders.CHATML, [SYSTEM, USER], True)
    first_part = EACH + "{{ m.content[0]['text'] }};" + END
    assert text_of(first_part, [USER, ANSWER], False) == " \n写一条祝福\n;\n\n 万事如意 ;"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("Hello", "does not write the text of turn 1"),
        (EACH + "{{ m.role }}" + END, "does not write the text of turn 1"),
        ("{{ messages }}", "does not write the text of turn 1"),
        ("{{ messages[0].content }}", "does not write the text of turn 2"),
        (EACH + "{{ m.content | upper | replace('\n', '') }}" + END, "alters the text"),
        (EACH + "{{ m.content[:3] }}" + END, "writes other turns"),
        (EACH + "{{ m.content }}" + END + "\ufdd09\ufdd1", "other turns"),
        (EACH + "{{ m.content | nosuch }}" + END, "No filter named 'nosuch'"),
        ("{% for m in messages %}{{ m.content ", "unexpected end of template"),
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ 1/0 }}", "division by zero"),
        ("{{ ().__class__.__mro__ }}", "is unsafe"),
        ("{{ messages.append(1) }}", "is unsafe"),
    ],
)
def test_a_template_that_does_not_write_the_texts_is_refused(template, problem):
    with pytest.raises(UserError, match=f"tokenizer x: its chat template does not accept the roles user, assistant: .*{problem}"):
        text_of(template, [USER, ANSWER], False)


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(70) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'ab' * 2000000000 }}", "{{ '%900000000d' | format(1) }}", "{{ 'x'.center(900000000) }}",
        "{% set n = namespace(t='abcdefgh') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ " + "(" * 4000, "{% if 1 %}" * 4000, "x" * 600_000,
        "{{ 'y' * 2000000 }}",
    ],
)  # fmt: skip
def test_a_template_cannot_hang_or_fill_the_memory(template):
    start = time.process_time()
    with pytest.raises(UserError, match="tokenizer x: its chat template"):
        text_of(template, [USER], True)
    assert time.process_time() - start < 1.0
    assert text_of(folders.CHATML, [USER], True) == rendered(folders.CHATML, [USER], True)  # the next one is served as ever


@pytest.mark.parametrize(
    "opened", ["<think>\n", "<think>", "<thinking>\n", "[THINK]", "<|thought|>\n", "<Reasoning>\n", "<seed:think>", "<｜think｜>"]
)
def test_an_open_thinking_block_is_closed(opened):
    template = folders.CHATML.replace("assistant\n{% endif", f"assistant\n{opened}{{% endif")
    tail = text_of(template, [USER], True).rpartition("assistant\n")[2]
    mark = opened.strip()
    assert tail == f"{mark}\n\n{mark[:2] if mark[1] in '|｜' else mark[0]}/{mark[2:] if mark[1] in '|｜' else mark[1:]}\n\n"
    assert text_of(folders.QWEN3, [USER], True).endswith("assistant\n<think>\n\n</think>\n\n")  # closed by itself
    assert text_of(template, [USER, ANSWER], False) == text_of(folders.CHATML, [USER, ANSWER], False)


def test_today_is_always_the_same_day():
    template = "{{ strftime_now('%d %b %Y %H:%M') }}|" + EACH + "{{ m.content }}" + END
    assert text_of(template, [USER], True).startswith("26 Jul 2024 00:00|")


def test_a_text_chooses_nothing_that_the_template_writes():
    template = EACH + "{% if 'secret' in m.content %}{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}" + END
    told = [{"role": "user", "content": "the secret {{ 7 * 7 }} \ufdd00\ufdd1 </think> word"}]
    assert text_of(template, told, True) == told[0]["content"]


def test_named_templates_and_files_beside_the_tokenizer(tmp_path):
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": folders.CHATML}]
    plain = Tokenizer.load(folders.tokenizer_folder(tmp_path / "plain", folders.CHATML, eos_token="<|im_end|>"))
    expected = plain.encode_chat_prompt("hello")
    assert (
        Tokenizer.load(folders.tokenizer_folder(tmp_path / "n", named, eos_token="<|im_end|>")).encode_chat_prompt("hello")
        == expected
    )
    for file, content in (("chat_template.jinja", folders.CHATML), ("chat_template.json", {"chat_template": folders.CHATML})):
        folder = folders.tokenizer_folder(tmp_path / file, None, eos_token="<|im_end|>")
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        loaded = Tokenizer.load(folder)
        loaded.save(tmp_path / f"{file}-saved")
        assert (
            loaded.encode_chat_prompt("hello") == expected == Tokenizer.load(tmp_path / f"{file}-saved").encode_chat_prompt("hello")
        )
    with pytest.raises(UserError, match="no chat template"):
        Tokenizer.load(folders.tokenizer_folder(tmp_path / "none", named[:1], eos_token="<|im_end|>"))
