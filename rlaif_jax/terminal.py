"""The console of commands and runs: whatever is printed there, markup in it is text, and control characters are taken out."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from rlaif_jax.errors import masked, printable

_PIPE_WIDTH = 200  # columns, where the output is no terminal


class PlainConsole(Console):
    """A console for texts of models and files. Styles and the cursor are the program's alone; "[/b]" in a text stays as it is.

    A pipe or a file gets wide lines, so that no table is cut.
    """

    def __init__(self, **options: Any):
        wide = not (sys.stdout.isatty() or "COLUMNS" in os.environ or "file" in options)
        super().__init__(**({"highlight": False, "markup": False, "width": _PIPE_WIDTH if wide else None} | options))

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints texts without control characters, and everything else through `render`."""
        super().print(*(printable(value) if isinstance(value, str) else value for value in objects), **options)

    def on_broken_pipe(self) -> None:
        """Raises the error that Rich caught: the command ends with a line of its own."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The parts of what is printed; only the program's own have control codes."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


class _Lines(logging.Handler):
    """Log records as lines of the program: without the name of a module, and each line once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = masked(printable(record.getMessage()))
        if text not in self._seen:
            self._seen.add(text)
            print(f"rlaif: note: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def plain_log() -> Iterator[None]:
    """While a command runs, warnings of this package are lines of the program, and libraries print no hints of their own."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logger, handler = logging.getLogger("rlaif_jax"), _Lines()
    logger.addHandler(handler)
    logger.propagate = False  # libraries set up the root logger, which would print the record again
    show = warnings.showwarning

    def note(message: Any, category: Any, filename: str, *rest: Any) -> None:
        if category is UserWarning and "rlaif_jax" in filename:
            logger.warning("%s", message)
        else:
            show(message, category, filename, *rest)

    warnings.showwarning = note
    try:
        yield
    finally:
        warnings.showwarning = show
        logger.removeHandler(handler)
        logger.propagate = True
