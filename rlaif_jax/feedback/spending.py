"""What language models cost: a ledger per stage, kept over interruptions, and the budget of a run."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif_jax.errors import UserError

FILE = "spending.jsonl"


@dataclasses.dataclass(frozen=True)
class Spending:
    """Requests and what they cost.

    Attributes:
      requests: requests that a model answered.
      cached: requests that stored replies answered, at no cost.
      prompt_tokens, completion_tokens: tokens of the answered requests.
      money: their price, in the currency of `feedback.http.price_prompt`.
      estimated: requests among them for which the server gave no token counts. The largest possible counts are taken.
      unsure: price of attempts that ended without a response (a timeout, a broken connection), which the server may have billed.
        The budget counts it.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    estimated: int = 0
    unsure: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        return Spending(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        text = f"{self.requests:,} requests ({tokens}), {self.cached:,} from stored replies, cost {self.money:.4g}"
        if self.estimated:
            text += f" ({self.estimated:,} requests without token counts: the largest possible ones are taken)"
        return text + (f", perhaps {self.unsure:.4g} more for attempts without a response" if self.unsure else "")


class Ledger:
    """The spending of one stage: a line of JSON per item in a file, so that it survives `kill -9`. Without a file: in memory."""

    def __init__(self, path: Path | None = None, others: Sequence[Path] = ()):
        self._path, self._lock = path, threading.Lock()
        if path is not None and path.exists():
            _drop_cut_line(path)
        self.total = Spending() if path is None else read_spending(path)
        self.before = sum((read_spending(other) for other in others if other != path), Spending())  # of the run's other stages

    def add(self, item: Spending) -> None:
        """Counts an item."""
        with self._lock:
            self.total += item
            if self._path is None:
                return
            found = {name: value for name, value in dataclasses.asdict(item).items() if value}
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
            except OSError as error:
                raise UserError(f"{self._path} cannot be written: {error.strerror}") from error


def read_spending(path: Path) -> Spending:
    """The sum of a ledger's file; nothing where there is no file. A last line that a crash cut off is ignored."""
    if not path.exists():
        return Spending()
    total = Spending()
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            total += _item(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}:{number}: not a line of a spending ledger ({error}); delete that line, or move the file away"
            ) from error
    return total


def _drop_cut_line(path: Path) -> None:
    """Deletes an incomplete last line, which the next one would be joined to."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _item(values: Any) -> Spending:
    kinds = {f.name: float if f.type == "float" else int for f in dataclasses.fields(Spending)}
    if not isinstance(values, dict) or (unknown := values.keys() - kinds.keys()):
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}" if isinstance(values, dict) else "expected an object")
    for name, value in values.items():
        number = type(value) is int or (type(value) is float and kinds[name] is float and math.isfinite(value))
        if not number or not 0 <= value < 1e15:
            raise ValueError(f"{name} is {value!r:.50}")
    return Spending(**values)


class Account:
    """The tokens and money that a model costs. Attempts in flight reserve their largest cost, so the budget holds for them too."""

    def __init__(self, price_prompt: float, price_completion: float, budget: float, ledger: Ledger | None = None):
        self._prices, self._budget, self.ledger = (price_prompt, price_completion), budget, ledger or Ledger()
        self._lock, self._reserved = threading.Lock(), 0.0
        self._start = self.ledger.total

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of this number of tokens."""
        return (prompt_tokens * self._prices[0] + completion_tokens * self._prices[1]) / 1e6

    @property
    def replies(self) -> int:
        """Requests answered in this process."""
        return self.ledger.total.requests - self._start.requests

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of this process."""
        return self.ledger.total.prompt_tokens - self._start.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Completion tokens of this process."""
        return self.ledger.total.completion_tokens - self._start.completion_tokens

    @property
    def spent(self) -> float:
        """What the run has spent, in all its stages and starts."""
        return self.ledger.total.money + self.ledger.before.money

    def fits(self, most: tuple[int, int], reserved: float = 0.0) -> bool:
        """Whether these numbers of tokens fit into the budget, beside what was spent, may have been billed, and is reserved."""
        unsure = self.ledger.total.unsure + self.ledger.before.unsure
        return not self._budget or self.spent + unsure + reserved + self.cost(*most) <= self._budget

    def reserve(self, most: tuple[int, int]) -> bool:
        """Reserves the price of these numbers of tokens. False if the budget does not allow it."""
        with self._lock:
            if not self.fits(most, self._reserved):
                return False
            self._reserved += self.cost(*most)
            return True

    def settle(self, most: tuple[int, int], usage: tuple[int | None, int | None] | None, unsure: bool = False) -> None:
        """Replaces a reservation by the `usage` of the response, whose unknown counts are those reserved; None: no response.

        `unsure`: there was no response, but the server may have billed the attempt.
        """
        with self._lock:
            self._reserved -= self.cost(*most)
            if usage is not None:
                counts = [reserved if n is None else n for n, reserved in zip(usage, most, strict=True)]
                self.ledger.add(Spending(1, 0, *counts, self.cost(*counts), int(None in usage)))
            elif unsure and (amount := self.cost(*most)):
                self.ledger.add(Spending(unsure=amount))
