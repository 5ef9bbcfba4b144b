"""Templates of prompts as data: no code runs, and a rendering is bounded in steps and in the size of its texts.

A parsed template is changed so that loops count their steps and `a ~ b` checks its size. Calls and filters count by the size of
what they work on. Only the filters and methods in the lists below exist.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

from rlaif_jax.errors import UserError, printable

_STEPS = 200_000  # a pass of a loop, a call and a filter take one step and one more for every 200 characters of the template
_CHARACTERS = 1_000_000  # of a text that a template makes
_LARGEST = 10**12
_FILTERS = (
    "abs capitalize count d default dictsort e escape first float int items last length list lower max min reject rejectattr "
    "reverse safe select selectattr sort string striptags title trim truncate unique upper wordcount"
)
_METHODS = (
    "capitalize casefold changed count cycle endswith find get index isalpha isascii isdigit isspace items keys lower lstrip "
    "removeprefix removesuffix rfind rsplit rstrip split splitlines startswith strip title upper values"
)


class Template:
    """One prompt file. `names` are the fields that it reads. UserError with file and line if it is no template."""

    def __init__(self, text: str, where: str):
        self._where, self._weight = where, 1 + len(text) // 200
        if len(text) > _CHARACTERS:
            raise UserError(f"{where}: more than {_CHARACTERS:,} characters are no template")
        _ENVIRONMENT.begin(self._weight)  # compiling evaluates constants
        try:
            self._template = _ENVIRONMENT.from_string(text)
            self.names = meta.find_undeclared_variables(_ENVIRONMENT.parse(text)) - set(_ENVIRONMENT.globals)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{where}:{error.lineno}: {printable(str(error.message))}") from error
        except (Exception, MemoryError) as error:  # of Python's compiler: nested too deeply, a number of thousands of digits
            raise UserError(f"{where}: {type(error).__name__}: {printable(str(error))}") from error

    def render(self, fields: dict[str, Any]) -> str:
        """The text with these fields. UserError if the template fails or exceeds a bound."""
        try:
            return _ENVIRONMENT.rendered(self._template, fields, self._weight)
        except jinja2.TemplateError as error:
            raise UserError(f"{self._where}: {printable(str(error.message))}") from error
        except (Exception, MemoryError) as error:  # whatever its expressions raise
            raise UserError(f"{self._where}: {type(error).__name__}: {printable(str(error))}") from error


class Sandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment for templates of strangers. SecurityError for one that exceeds a bound or reaches for Python."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False, optimized=False,
            finalize=self._written,
        )  # fmt: skip
        self._count = _Count()
        own = {"join": _joined, "replace": _replaced, "indent": _indented, "tojson": _as_json, "fence": fence}
        self.filters = {name: self._counting(f) for name, f in ({n: self.filters[n] for n in _FILTERS.split()} | own).items()}
        self.filters |= {"_steps": self._steps, "_joined": _joined}
        self.globals = {"range": self._range, "namespace": self.globals["namespace"]}

    def rendered(self, template: jinja2.Template, fields: dict[str, Any], weight: int) -> str:
        """The template with these fields; `weight`: the steps that one pass of a loop or one call counts."""
        self.begin(weight)
        return template.render(**fields)

    def begin(self, weight: int) -> None:
        """Starts to count anew."""
        self._count.left, self._count.written, self._count.weight = _STEPS, 0, weight

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """A call in a template."""
        self._step(getattr(function, "__self__", None))
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A sum, product or remainder: of numbers, and a sum also of texts."""
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return _joined((left, right))
        if operator == "**" or not all(isinstance(value, int | float) and abs(value) <= _LARGEST for value in (left, right)):
            raise SecurityError(f"{type(left).__name__} {operator} {type(right).__name__} is not allowed in a prompt file")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute: data, and the methods in the list."""
        return super().is_safe_attribute(obj, attr, value) and (not callable(value) or attr in _METHODS.split())

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Counted().visit(super()._parse(source, name, filename))

    def _step(self, over: Any = None) -> None:
        self._count.left -= self._count.weight + (len(over) // 100 if isinstance(over, Sized) else 0)
        if self._count.left < 0:
            raise SecurityError("the template takes too many steps")

    def _steps(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _range(self, *bounds: int) -> range:
        found = range(*bounds)
        self._count.left -= min(len(found), _STEPS)
        self._step()
        return found

    def _written(self, value: Any) -> str:
        text = str(value)
        self._count.written += len(text)
        _check_size(self._count.written)
        return text

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that counts what it works on."""

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._step(args[1 if hasattr(function, "jinja_pass_arg") else 0])
            return function(*args, **kwargs)

        return counted


class _Count(threading.local):
    left, written, weight = _STEPS, 0, 1


class _Counted(NodeTransformer):
    """Puts the counter into every loop, and the check of the size into every `a ~ b`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        node.iter = nodes.Filter(node.iter, "_steps", [], [], None, None).set_lineno(node.lineno)
        self.generic_visit(node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "_joined", [], [], None, None).set_lineno(node.lineno)
_MARKS = str.maketrans("\u27e6\u301a\u27ec\u27ea\u27e7\u301b\u27ed\u27eb", "[[[[]]]]")  # marks of a fence, and what looks like them


def fence(text: str) -> str:
    """Puts text of a model or a file between marks. The text cannot end them: such marks inside, and those that look like them,
    become square brackets."""
    return "\u27e6" + text.translate(_MARKS) + "\u27e7"


def _check_size(size: int) -> None:
    if size > _CHARACTERS:
        raise SecurityError(f"the template makes a text of more than {_CHARACTERS:,} characters")


def _joined(parts: Iterable[Any], separator: Any = "") -> str:
    found, size, separator = [], 0, str(separator)
    for part in parts:
        found.append(str(part))
        size += len(found[-1]) + len(separator)
        _check_size(size)
    return separator.join(found)


def _replaced(text: Any, old: Any, new: Any) -> str:
    text, old, new = str(text), str(old), str(new)
    _check_size(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    return text.replace(old, new)


def _indented(text: Any, width: int = 4, first: bool = False) -> str:
    lines = str(text).split("\n")
    _check_size(len(lines) * width + len(str(text)))
    return "\n".join(" " * width + line if i or first else line for i, line in enumerate(lines))


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_ENVIRONMENT = Sandbox()
