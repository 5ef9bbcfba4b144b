"""Answers from a folder: streamed as sampled, the same as transformers', and files of them that can be resumed."""

import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from rlaif_jax import cli
from rlaif_jax.cli import main
from rlaif_jax.commands import generate
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.models import transformer
from rlaif_jax.runs.chat_model import Answerer, ChatModel, chat_messages
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.sampler import make_sampler
from rlaif_jax.sampling.stream import make_stream
from tests import hf

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf.instruct_folder(tmp_path_factory.mktemp("qwen"))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 4, 99])
def test_the_stream_is_what_the_sampler_samples(small_model, one_device, eight_devices, chunk):
    params = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, transformer.init(small_model, jax.random.key(0)))
    axes = transformer.logical_axes(small_model)
    prompt = np.arange(5, 13, dtype=np.int32)[None]
    segments = (prompt > 7).astype(np.int32)
    sampling = traced(SamplingConfig(0.8), (3, 5))
    sampler = make_sampler(small_model, axes, one_device, group=1, max_tokens=24, pad_id=0)
    for place in (one_device, eight_devices):
        stream = make_stream(params, small_model, axes, place, max_tokens=24, pad_id=0, chunk=chunk)
        lengths = set()
        for step in range(6):
            whole = jax.device_get(sampler(params, prompt, segments, 7, step, sampling))
            pieces = list(stream(prompt, segments, 7, step, sampling))
            assert all(len(p) <= chunk for p in pieces) and len(pieces) >= -(-int(whole.mask.sum()) // chunk)
            np.testing.assert_array_equal(np.concatenate(pieces), whole.tokens[0][whole.mask[0] > 0])
            lengths.add(int(whole.mask.sum()))
        assert len(lengths) > 1, "some end early"


@pytest.mark.slow
def test_pieces_join_to_the_answer_and_hold_half_characters_back(folder):
    model = ChatModel.of_folder(folder, 48)
    held_back = 0
    for seed in range(4):
        sampling = SamplingConfig(1.0, max_tokens=48)
        pieces = list(Answerer(model, 1, seed, sampling, "助手").stream(chat_messages("新年好", "助手")))
        whole = Answerer(model, 1, seed, sampling, "助手")("新年好")[0].removesuffix(" ...")
        assert "".join(pieces) == whole
        held_back += "" in pieces[:-1]
    assert held_back


def test_a_greedy_answer_is_that_of_transformers(folder, capsys):
    import transformers

    command = ["generate", "--model", str(folder), "--temperature", "0", "--max-tokens", "24", "--system", "助手"]
    assert main([*command, "--prompt", "给妈妈的祝福"]) == 0
    shown = capsys.readouterr().out
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    ids = tokenizer.apply_chat_template(chat_messages("给妈妈的祝福", "助手"), **options)
    end = list(Tokenizer.load(folder).eos_ids)
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=24, do_sample=False, eos_token_id=end, pad_token_id=0)
    answer = tokenizer.decode([i for i in out[0, ids["input_ids"].shape[1] :] if i not in end])
    assert len(answer) > 8
    visible = "".join(c for c in answer if c.isprintable() or c == "\n")
    assert shown.split("\n", 1)[1].rstrip("\n") == visible.rstrip("\n")


BANNER = "Type a request; an empty line or Ctrl-D ends the chat.\n"


def _typed(monkeypatch, *lines):
    """What a user would type; after it, the end of the input."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def _greedy(folder, *messages):
    """The answer that ends these messages, as the terminal shows it."""
    answerer = Answerer(ChatModel.of_folder(folder, 12), 1, 0, SamplingConfig(0.0, max_tokens=12))
    answer = "".join(answerer.stream(messages))
    return answer, generate._CONTROL.sub("", answer)


@pytest.mark.slow
def test_a_chat_remembers_and_ends_at_an_empty_line(folder, monkeypatch, capsys):
    system, first, second = *chat_messages("新年好", "助手"), *chat_messages("再写一条")
    one, shown_one = _greedy(folder, system, first)
    told = system, first, {"role": "assistant", "content": one}, second
    (_, shown_two), (_, alone) = _greedy(folder, *told), _greedy(folder, system, second)
    assert shown_two != alone, "the conversation matters"
    _typed(monkeypatch, "新年好", "  再写一条  ", "", "不再回答")
    command = ["generate", "--model", str(folder), "--temperature", "0", "--max-tokens", "12", "--system", "助手"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{BANNER}> {shown_one}\n> {shown_two}\n> "


@pytest.mark.slow
def test_a_chat_that_grows_too_long_begins_anew(folder, monkeypatch, capsys):
    command = ["generate", "--model", str(folder), "--temperature", "0", "--max-tokens", "12"]
    _typed(monkeypatch, "新年好", "长" * 600, "再写一条")  # and Ctrl-D
    assert main(command) == 0
    (_, first), (_, second) = (_greedy(folder, *chat_messages(text)) for text in ("新年好", "再写一条"))
    out = capsys.readouterr().out
    assert out.startswith(f"{BANNER}> {first}\n> the prompt has ") and "starting a new conversation" in out
    assert out.endswith(f"> {second}\n> ")


@pytest.mark.slow
def test_a_chat_with_several_samples_or_of_a_run_takes_each_request_alone(folder, monkeypatch, capsys):
    command = ["generate", "--model", str(folder), "--max-tokens", "12", "--samples", "2"]
    _typed(monkeypatch, "新年好")
    assert main(command) == 0
    two = Answerer(ChatModel.of_folder(folder, 12), 2, 0, SamplingConfig(0.7, max_tokens=12))("新年好")
    assert two[0] != two[1]
    assert capsys.readouterr().out == BANNER + "> " + "".join(f"{generate._CONTROL.sub('', t)}\n" for t in two) + "> "
    _typed(monkeypatch, "新年好", "再写一条")
    generate.chat(ChatModel.of_folder(folder, 12), SamplingConfig(0.0, max_tokens=12), console=Console())
    (_, first), (_, second) = (_greedy(folder, *chat_messages(text)) for text in ("新年好", "再写一条"))
    assert capsys.readouterr().out == f"{BANNER}> {first}\n> {second}\n> "


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.slow
def test_a_file_of_answers_is_resumed_and_never_overwritten(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"第{i}条祝福", "system": "助手" if i % 2 else ""} for i in range(7)]
    rows[3]["prompt"] = "长" * 600
    prompts.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")

    def answer(out, *more):
        command = ["generate", "--model", str(folder), "--file", str(prompts), "--out", str(out), "--samples", "2"]
        return main([*command, "--max-tokens", "12", *more])

    whole, other = tmp_path / "whole.jsonl", tmp_path / "other.jsonl"
    assert answer(whole, "--batch-size", "3") == 0
    found = _rows(whole)
    assert [r["prompt"] for r in found] == [r["prompt"] for r in rows]
    assert all(len(r["responses"]) == len(r["finished"]) == 2 for i, r in enumerate(found) if i != 3)
    assert "responses" not in found[3] and "at most" in found[3]["error"]
    assert len({t for r in found if "responses" in r for t in r["responses"]}) > 8, "every sample has keys of its own"
    assert answer(other, "--batch-size", "8") == 0
    assert other.read_bytes() == whole.read_bytes(), "the batch size changes nothing"

    lines = whole.read_bytes().splitlines(keepends=True)
    other.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # as a killed run leaves it
    assert answer(other, "--batch-size", "2") == 0
    assert other.read_bytes() == whole.read_bytes()
    assert "4 of them before" in capsys.readouterr().out
    assert answer(other, "--seed", "1") == 2
    assert "other settings (seed)" in capsys.readouterr().err
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(prompts.read_text(encoding="utf-8").replace('"prompt"', '"brief"'), encoding="utf-8")
    command = ["generate", "--model", str(folder), "--file", str(renamed), "--samples", "2", "--max-tokens", "12", "--out"]
    assert main([*command, str(tmp_path / "columns.jsonl"), "--columns", "prompt=brief"]) == 0
    assert (tmp_path / "columns.jsonl").read_bytes() == whole.read_bytes()
    assert main([*command, str(tmp_path / "no.jsonl"), "--columns", "answer=brief"]) == 2
    assert "--columns has 'answer'" in capsys.readouterr().err
    (tmp_path / "mine.jsonl").write_text("mine")
    assert answer(tmp_path / "mine.jsonl") == 2
    assert (tmp_path / "mine.jsonl").read_text() == "mine" and other.read_bytes() == whole.read_bytes()


def test_mistakes_are_named(folder, tmp_path, capsys):
    for command, message in (
        (["generate", "--prompt", "x"], "either a run's folder or --model"),
        (["generate", "--model", str(folder), "--file", "x.jsonl"], "--file and --out go together"),
        (["generate", "--model", str(folder), "--prompt", "x", "--samples", "0"], "--samples is 0; expected at least 1"),
        (["generate", "--model", str(folder), "--prompt", "x", "--batch-size", "0"], "--batch-size is 0"),
        (["generate", "--model", str(folder), "--prompt", "x", "--seed", "-1"], "--seed is -1; expected at least 0"),
        (["generate", "--model", str(folder), "--prompt", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["generate", "--model", str(tmp_path), "--prompt", "x"], r"no config.json"),
        (["generate", "--model", str(folder), "--prompt", "x", "--max-tokens", "600"], "made for 512 tokens"),
        (["generate", "--model", str(folder), "--prompt", "长" * 600], "at most"),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err


def test_arguments_are_utf8_in_every_locale(capsys):
    as_in_the_c_locale = "给妈妈".encode().decode("ascii", "surrogateescape")
    assert cli._utf8(as_in_the_c_locale) == "给妈妈" and cli._utf8("给妈妈") == "给妈妈"
    assert cli.main(["generate", "nowhere", "--prompt", "\udcff写"]) == 2
    assert "--prompt is not UTF-8" in capsys.readouterr().err
