"""`rlaif generate`: prints answers to prompts, or chats on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from rlaif_jax.errors import UserError, printable
from rlaif_jax.runs.chat_model import Answerer, ChatModel, Messages, chat_messages
from rlaif_jax.sampling.filters import SamplingConfig


def generate(
    model: ChatModel, prompts: Sequence[str], sampling: SamplingConfig, *, samples: int = 1, seed: int = 0, system: str = "",
    console: Console,
) -> None:  # fmt: skip
    """Prints `samples` answers to each prompt; a single answer is printed while it is sampled. `ChatModel.answer` returns them."""
    answer = Answerer(model, samples, seed, sampling, system)
    for prompt in prompts:
        _show(console, f"> {prompt}\n", style="bold")
        _answer(answer, chat_messages(prompt, system), prompt, samples, console)


def chat(
    model: ChatModel, sampling: SamplingConfig, *, samples: int = 1, seed: int = 0, system: str = "", remember: bool = False,
    console: Console,
) -> None:  # fmt: skip
    """Answers requests from standard input until it ends. `remember`: keep the conversation. Off for a run's policy, which
    learned from single requests."""
    answer, start = Answerer(model, samples, seed, sampling, system), chat_messages("", system)[:-1]
    console.print("Type a request; an empty line or Ctrl-D ends the chat.", style="dim")
    before = start
    while prompt := _ask(console):
        messages = [*before, {"role": "user", "content": prompt}]
        try:
            text = _answer(answer, messages, prompt, samples, console)
        except UserError as error:
            console.print(f"{error}; starting a new conversation", style="yellow", markup=False)
            before = start
            continue
        if remember and samples == 1:
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
    """Prints a model's text without interpreting markup or terminal control characters."""
    console.print(Text(printable(text), style=style), end="", soft_wrap=True)


def _ask(console: Console) -> str:
    try:
        return console.input("> ").strip()
    except EOFError:
        return ""
