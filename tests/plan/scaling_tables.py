"""The tables of plans in docs/scaling.md: how one is written from `rlaif plan --json`, and how the test reads it back.

rlaif plan CONFIG --topology v5e:8x8 --json plan.json && python -m tests.plan.scaling_tables plan.json
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
GIB = 2**30
_COMMAND = re.compile(r"`rlaif plan (\S+) --topology (\S+)((?: --set \S+)*)`\n\n((?:\|.*\n)+)")
_WEAK = re.compile(r"`python benchmarks/weak_scaling.py (\S+) --layout copies`\n\n((?:\|.*\n)+)")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One table of the page and the command above it. `rows`: program -> column -> text."""

    config: str
    topology: str
    changes: tuple[str, ...]
    rows: dict[str, dict[str, str]]


def plans() -> list[Plan]:
    """All plans of the page. What stands in brackets is no part of a program's name."""
    found = []
    for config, topology, changes, text in _COMMAND.findall(PAGE.read_text(encoding="utf-8")):
        rows = {re.sub(r" \(.*\)", "", row["program"]): row for row in _rows(text)}
        found.append(Plan(config, topology, tuple(changes.split(" --set ")[1:]), rows))
    return found


def weak_scaling() -> tuple[str, dict[str, dict[str, str]]]:
    """The table of weak scaling: the config of its command, and topology -> column -> text."""
    ((config, text),) = _WEAK.findall(PAGE.read_text(encoding="utf-8"))
    return config, {f"v5p:{re.search(r'[(](.*)[)]', row['chips'])[1]}": row for row in _rows(text)}


def _rows(text: str) -> list[dict[str, str]]:
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [dict(zip(head, cells, strict=True)) for cells in lines]


def number(text: str) -> float:
    """5.25 of "5.25 GiB", 0 of "-"."""
    return 0.0 if text == "-" else float(text.split(" ")[0])


def received(row: dict) -> dict[str, float]:
    """GiB that one chip receives, by the mesh axes that are crossed; `row` as in the JSON of `rlaif plan`."""
    total: dict[str, float] = {}
    for found in row["collectives"]:
        total[found["axes"] or "other"] = total.get(found["axes"] or "other", 0.0) + found["bytes"] / GIB
    return total


def table(plan: dict) -> str:
    """Markdown of the JSON of `rlaif plan`. Axes over which no program receives 0.1 GiB have no column."""
    axes: list[str] = []
    for row in plan["programs"]:
        axes += [a for a, gib in received(row).items() if gib >= 0.1 and a not in axes]
    head = ["program", "memory", "of these held", "TFLOP", *(f"received over {a}" for a in axes), "at least", "bound by"]
    lines = [head, ["---"] * len(head)]
    for row in plan["programs"]:
        over, bound = received(row), max(row["seconds"], key=row["seconds"].get)
        lines.append(
            [row["name"], _gib(row["total"] / GIB), _gib(row["held"] / GIB), f"{row['flops'] / 1e12:.3g}"]
            + [_gib(over.get(a, 0.0), 1) for a in axes] + [f"{row['step_seconds']:.2f} s", bound]
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gib(gib: float, digits: int = 2) -> str:
    return f"{gib:.{digits}f} GiB" if round(gib, digits) else "-"


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
