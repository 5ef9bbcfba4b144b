"""Custom rewards: a Python function of samples, like TRL's `reward_funcs` or verl's `custom_reward_function`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlaif_jax.errors import UserError, printable
from rlaif_jax.feedback.llm import Failure
from rlaif_jax.ranges import Seconds, SignedWeight, check_fields
from rlaif_jax.rewards.base import RewardFn, RewardResult, Sample
from rlaif_jax.sharding.hosts import on_first

Score = Callable[[Sequence[Sample]], Any]


@dataclasses.dataclass(frozen=True)
class FunctionConfig:
    """A custom reward: `score(samples)` returns a float per sample (None: invalid), or a `RewardResult`.

    A sample has `prompt`, `response`, `finished`, `system` and `meta`, the other columns of its data row (such as a ground truth).

    Attributes:
      function: the callable, or its name: "module:name" or "path/to/file.py:name" (from the working directory). Only `rlaif run`
        and the stages that train, curate or play the game import the named code.
      weight: weight of this reward in the arm's sum of rewards.
      timeout: seconds for one call, which scores a batch of samples. After that, these samples are invalid; 0 = no limit.
      on_error: if a call raises an exception: "invalid" marks its samples as invalid and prints the first traceback (the run stops
        if more than `rl.max_invalid_rewards` of a batch is invalid); "raise" stops the run.
      processes: with several processes, "first": process 0 calls the function and broadcasts the values; "all": every process
        calls it, and all must get the same values.
    """

    function: Callable[..., Any] | str = ""
    weight: SignedWeight = 1.0
    timeout: Seconds = 0.0
    on_error: str = "invalid"
    processes: str = "first"

    def __post_init__(self):
        check_fields(self)
        if not callable(self.function) and ":" not in self.function:
            raise UserError(f"function is {self.function!r}; expected a callable, module:name or file.py:name")
        for field, allowed in (("on_error", ("invalid", "raise")), ("processes", ("first", "all"))):
            if getattr(self, field) not in allowed:
                raise UserError(f"function.{field} is {getattr(self, field)!r}; expected one of {', '.join(allowed)}")


def name_of(function: Score | str) -> str:
    """The name of a function in a saved config: "module:name", or "file.py:name" if a config file defines it."""
    if isinstance(function, str):
        return function
    module = getattr(function, "__module__", "") or ""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    file = getattr(sys.modules.get(module), "__rlaif_config__", "")
    return f"{file or module}:{name}"


def resolve(function: Score | str) -> Score:
    """The callable. A name is resolved by importing its module or running its file. UserError if there is no such function."""
    if callable(function):
        return function
    place, _, name = function.rpartition(":")
    _make_importable(Path.cwd())
    try:
        module = run_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"function {function!r}: {place} cannot be imported ({type(error).__name__}: {error})") from error
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        what = "has no function" if found is None else "cannot call"
        raise UserError(f"reward function {function!r}: {place} {what} {name!r}")
    return found


def _make_importable(folder: Path) -> None:
    """Lets the user's files in `folder` import each other. Installed packages take precedence."""
    if (place := str(folder.resolve())) not in sys.path:
        sys.path.append(place)


def run_file(path: Path) -> Any:
    """Runs a Python file as a module. A saved config names its functions "file.py:name". UserError if there is none or it fails."""
    if not path.is_file():
        raise UserError(f"the file {path} does not exist (working directory: {Path.cwd()})")
    _make_importable(path.parent)
    name = f"rlaif_user_{path.stem}"
    module = types.ModuleType(name)
    module.__dict__.update(__file__=str(path), __rlaif_config__=path.name)
    sys.modules[name] = module  # dataclasses and pickle look up a class's module there
    with one_line_errors(path):
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


@contextlib.contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Whatever code of the file raises is a UserError with the line of the file: "my.py:12: NameError: ..."."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = lines[-1] if lines else 0
        if isinstance(error, SyntaxError) and error.filename == str(path):
            line, error = error.lineno or 0, SyntaxError(error.msg)
        place = f"{path}:{line}" if line else str(path)
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if isinstance(error, TypeError) and (found := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword .*'(\w+)'", what)):
            what = f"{found[1]} has no field {found[2]!r}; `rlaif config list` shows all of them"
        raise UserError(f"{place}: {printable(what)}") from error


def function_reward(cfg: FunctionConfig, name: str, report: Callable[[str], None]) -> RewardFn:
    """The function as a reward. `report` gets the first problem (a traceback or a wrong result) as text."""
    score, told = resolve(cfg.function), threading.Event()

    def failed(samples: Sequence[Sample], problem: str) -> RewardResult:
        if cfg.on_error == "raise":
            raise UserError(f"reward function {name!r}: {problem}")
        if not told.is_set():
            told.set()
            report(f"reward function {name!r}: {problem.rstrip()}\nThese samples are invalid. Further problems are not shown.")
        cause = Failure("function", f"{name!r}: {problem.strip().splitlines()[-1][:300] if problem.strip() else 'no result'}")
        return RewardResult(np.zeros(len(samples), np.float32), np.zeros(len(samples), bool), problem=cause)

    def call(samples: Sequence[Sample]) -> RewardResult:
        kind, value = _called(score, samples, cfg.timeout)
        if kind != "value":
            return failed(samples, value)
        try:
            return as_result(value, len(samples))
        except (TypeError, ValueError) as error:
            return failed(samples, str(error))

    def on_all(samples: Sequence[Sample]) -> RewardResult:
        return _from_plain(on_first(lambda: _to_plain(call(samples)), f"reward {name}"))

    return on_all if jax.process_count() > 1 and cfg.processes == "first" else call


def _called(score: Score, samples: Sequence[Sample], timeout: float) -> tuple[str, Any]:
    """("value", return value), ("error", traceback) or ("timeout", message) of one call."""
    out: list[tuple[str, Any]] = []

    def work() -> None:
        try:
            out.append(("value", score(samples)))
        except (Exception, SystemExit):
            out.append(("error", traceback.format_exc()))

    if not timeout:
        work()
        return out[0]
    # A thread cannot be killed. One that hangs keeps running until the process ends.
    thread = threading.Thread(target=work, daemon=True, name="reward-function")
    thread.start()
    thread.join(timeout)
    return out[0] if out else ("timeout", f"no result within {timeout:g} s")


def as_result(value: Any, count: int) -> RewardResult:
    """The return value as a `RewardResult` of `count` rows. None and NaN are invalid rows; a wrong shape is a ValueError."""
    if isinstance(value, RewardResult):
        shapes = [np.shape(part) for part in (value.values, value.valid, value.applies)]
        if shapes != [(count,)] * 3:
            raise ValueError(f"expected values, valid and applicable of {count} rows, found {', '.join(map(str, shapes))}")
        return value
    expected = f"expected a list of {count} numbers or None, one for each sample"
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        raise ValueError(f"it returned {type(value).__name__}; {expected}")
    try:
        found = [np.nan if v is None else float(v) for v in value]
    except (TypeError, ValueError) as error:
        raise ValueError(f"it returned a value that is no number ({error}); {expected}") from error
    if len(found) != count:
        raise ValueError(f"expected {count} values, one for each sample, found {len(found)}")
    values = np.array(found, np.float32)
    valid = np.isfinite(values)
    cause = None if valid.all() else Failure("function", "it returned None, NaN or an infinite number for a sample")
    return RewardResult(np.where(valid, values, 0.0).astype(np.float32), valid, problem=cause)


def _to_plain(result: RewardResult) -> dict[str, Any]:
    """As plain JSON data, for the other processes."""
    parts = {name: np.asarray(part, np.float64).tolist() for name, part in result.components.items()}
    applicable = None if result.applicable is None else result.applicable.tolist()
    problem = None if result.problem is None else dataclasses.asdict(result.problem)
    return {
        "values": result.values.tolist(), "valid": result.valid.tolist(), "components": parts, "applicable": applicable,
        "problem": problem,
    }  # fmt: skip


def _from_plain(values: dict[str, Any]) -> RewardResult:
    parts = {name: np.array(part, np.float32) for name, part in values["components"].items()}
    applicable = None if values["applicable"] is None else np.array(values["applicable"], bool)
    problem = None if values["problem"] is None else Failure(**values["problem"])
    return RewardResult(np.array(values["values"], np.float32), np.array(values["valid"], bool), parts, applicable, problem)
