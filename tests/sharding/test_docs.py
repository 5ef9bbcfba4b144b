"""Every Python block of docs/sharding.md runs, in order, and prints what the page says it prints."""

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "sharding.md"
_BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


def test_the_page_is_true():
    page = PAGE.read_text(encoding="utf-8")
    namespace, checked = {}, 0
    for found in _BLOCK.finditer(page):
        code, expected = found.groups()
        line = page[: found.start(1)].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, str(PAGE), "exec"), namespace)
        if expected is not None:
            assert printed.getvalue() == expected, f"{PAGE.name}, the block in line {line}, printed\n{printed.getvalue()}"
            checked += 1
    assert checked >= 7 and page.count("```python") == len(_BLOCK.findall(page))


def test_the_page_names_every_public_name():
    from rlaif_jax import sharding

    page = PAGE.read_text(encoding="utf-8")
    missing = [name for name in sharding.__all__ if f"`{name}" not in page and f"{name}(" not in page]
    assert not missing, f"docs/sharding.md says nothing of {missing}"
