"""Does what a model folder of a stranger says: renders its chat template, matches its patterns. Either may loop or fill the memory.

`bounded` runs it as a script. One JSON object a line comes in (see `render` and `match`), one JSON value a line goes out. The
limits hold for each line.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import re
import resource
import signal
import sys
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEGABYTES, SECONDS = 256, 1.0  # of CPU time, for each line
_MOST_CHARACTERS = 1_000_000
# The day that every template reads as today, so that a chat has the same tokens on every day.
TODAY = datetime.datetime(2024, 7, 26)


class _Generation(Extension):
    """`{% generation %}`, which marks the part that is trained, writes its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _refuse(message: Any) -> None:
    raise TemplateError(str(message))


def _tojson(x: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    """A template with the names that transformers gives to chat templates; strftime_now writes a fixed day."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: TODAY.strftime(form)}
    return environment.from_string(template)


def render(job: dict[str, Any]) -> list[dict[str, str]]:
    """For each chat of `job` {"template", "values", "chats": [[messages, generate], ...]} {"text"} or {"error"}."""
    return [_rendered(job["template"], job["values"], *chat) for chat in job["chats"]]


def _rendered(template: str, values: dict[str, Any], messages: list[dict[str, Any]], generate: bool) -> dict[str, str]:
    # Keeps templates such as Qwen3's from opening a thinking block. Other templates ignore the options.
    options = {"enable_thinking": False, "thinking": False, "tools": None, "documents": None}
    try:
        text = _compiled(template).render(**{**values, **options, "messages": messages, "add_generation_prompt": generate})
    except TemplateError as error:
        return {"error": str(error.message or error)[:500]}
    except MemoryError:
        return {"error": f"it needs more than {MEGABYTES} MiB"}
    except Exception as error:  # a template can raise whatever its expressions raise
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    if len(text) > _MOST_CHARACTERS:
        return {"error": f"it writes more than {_MOST_CHARACTERS:,} characters"}
    return {"text": text}


def match(job: dict[str, Any]) -> list[list[int]] | str:
    """For each regular expression of `job` {"patterns", "names"} the indices of the names that it matches; else its error."""
    try:
        return [[i for i, name in enumerate(job["names"]) if re.fullmatch(p, name)] for p in job["patterns"]]
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        return str(error) or type(error).__name__


def main() -> None:
    """Answers lines until the input ends. A line that takes too long ends the process."""
    with contextlib.suppress(ValueError, OSError):  # a system without this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20,) * 2)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
        job = json.loads(line)
        answer = render(job) if "template" in job else match(job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
