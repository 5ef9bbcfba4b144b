"""`rlaif generate`: answers to prompts, or a chat, from a checkpoint of a run or from a Hugging Face folder."""

from __future__ import annotations

import argparse
import re

from rich.console import Console
from rich.text import Text

from rlaif_jax.errors import UserError
from rlaif_jax.run.chat_model import Answerer, Messages, Model, chat
from rlaif_jax.run.folder import open_run
from rlaif_jax.sampling.filters import SamplingConfig

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def run_generate(args: argparse.Namespace, console: Console) -> None:
    """Answers `args.prompt` or the rows of `args.file`; without either, a chat on standard input until it ends."""
    sampling = SamplingConfig(args.temperature, args.top_k, args.top_p, 0.0, args.max_tokens)
    for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"generate: --{name.replace('_', '-')} is {getattr(args, name)}; expected at least {least}")
    if (args.run is None) == (args.model is None):
        raise UserError("generate: expected either a run's folder or --model FOLDER")
    if (args.file is None) != (args.out is None):
        raise UserError("generate: --file and --out go together")
    if args.adapter and not args.model:
        raise UserError("generate: --adapter goes with --model; a run's own adapters are merged already")
    if args.model:
        model = Model.of_folder(args.model, args.max_tokens, args.adapter)
    else:
        model = Model.of_run(open_run(args.run, console=console), args.stage)
    if args.file:
        from rlaif_jax.commands.answer_file import answer_file

        answer_file(model, args.file, args.out, sampling, args, console)
        return
    answer = Answerer(model, args.samples, args.seed, sampling, args.system)
    for prompt in args.prompt:
        _show(console, f"> {prompt}\n", style="bold")
        _answer(answer, chat(prompt, args.system), prompt, args.samples, console)
    if not args.prompt:
        _chat(answer, args, console)


def _chat(answer: Answerer, args: argparse.Namespace, console: Console) -> None:
    """A model of a folder remembers the conversation; one of a run learned from single requests and gets them singly."""
    console.print("Type a request; an empty line or Ctrl-D ends.", style="dim")
    before = chat("", args.system)[:-1]
    while prompt := _ask(console):
        messages = [*before, {"role": "user", "content": prompt}]
        try:
            text = _answer(answer, messages, prompt, args.samples, console)
        except UserError as error:
            console.print(f"{error}; the conversation begins anew", style="yellow", markup=False)
            before = chat("", args.system)[:-1]
            continue
        if args.model and args.samples == 1:
            before = [*messages, {"role": "assistant", "content": text}]


def _answer(answer: Answerer, messages: Messages, prompt: str, samples: int, console: Console) -> str:
    if samples > 1:
        for text in answer(prompt):
            _show(console, f"{text}\n")
        return ""
    pieces = []
    for piece in answer.stream(messages):
        _show(console, piece)
        pieces.append(piece)
    _show(console, "\n")
    return "".join(pieces)


def _show(console: Console, text: str, style: str = "") -> None:
    """A model's text is data: no markup, no control characters of the terminal."""
    console.print(Text(_CONTROL.sub("", text), style=style), end="", soft_wrap=True)


def _ask(console: Console) -> str:
    try:
        return console.input("> ").strip()
    except EOFError:
        return ""
