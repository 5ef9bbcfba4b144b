"""Reads the collectives of a compiled program from its HLO text: kind, mesh axes, bytes and number of runs.

It understands what XLA's TPU compiler prints: loops whose condition compares a counter with a constant, collectives split
into asynchronous parts (counted once), all-reduce fused with a slice of its result (a reduce-scatter), and three notations
for groups of devices.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
          "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}  # fmt: skip
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)")
_COLLECTIVE = re.compile(rf"({'|'.join(_KINDS)})(?:-start)?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over one set of mesh axes.

    Attributes:
      kind: as XLA names it.
      axes: the mesh axes that it crosses, joined by +; "" if its groups match no set of axes.
      count: runs in one call of the program.
      bytes: bytes that one chip receives in all of these runs.
    """

    kind: str
    axes: str
    count: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    op: str
    rest: str  # operands and attributes


def collectives(text: str, mesh: Mapping[str, int], loop_trips: int = 1) -> list[Collective]:
    """All collectives of a compiled program, those with the most bytes first.

    `mesh`: axis sizes in the order of the device ids. `loop_trips`: iterations of a loop whose end depends on data.
    """
    program = _Program(text, dict(mesh), loop_trips)
    total: dict[tuple[str, str], np.ndarray] = program.cost(program.entry)
    found = [Collective(kind, axes, float(c), float(b)) for (kind, axes), (c, b) in total.items()]
    return sorted(found, key=lambda c: -c.bytes)


def unordered(text: str) -> list[tuple[str, str]]:
    """(loop, later) pairs: `later` is a collective after a loop, branch or call that has collectives, and does not depend on it.

    `text` is a scheduled program. TPUs and GPUs keep its order. XLA:CPU (jaxlib 0.10) may start `later` while the loop still
    runs. Devices of several processes can then wait for each other in different collectives: a deadlock.
    """
    computations, _ = _parse(text)
    samples: dict[str, bool] = {}

    def kind(i: _Instruction) -> str:
        if _COLLECTIVE.fullmatch(i.op):
            return "one"
        called = [*_branches(i.rest), *re.findall(r"\b(?:body|condition|to_apply|calls|called_computation)=%?([\w.\-]+)", i.rest)]
        return "many" if any(within(name) for name in called) else ""

    def within(name: str) -> bool:
        if name not in samples:
            samples[name] = any(kind(i) for i in computations.get(name, []))
        return samples[name]

    found = []
    for instructions in computations.values():
        after: dict[str, frozenset[str]] = {}  # the loops on whose results an instruction depends, directly or indirectly
        loops: list[str] = []
        for i in instructions:
            read = frozenset().union(*(after.get(o, ()) for o in re.findall(r"%([\w.\-]+)", i.rest)))
            what = kind(i)
            found += [(loop, i.name) for loop in loops if what and loop not in read]
            if what == "many":
                loops.append(i.name)
                read |= {i.name}
            after[i.name] = read
    return found


class _Program:
    def __init__(self, text: str, mesh: dict[str, int], loop_trips: int):
        self._mesh, self._loop_trips = mesh, loop_trips
        self._computations, self.entry = _parse(text)

    @functools.cache  # noqa: B019  (one program, short-lived)
    def cost(self, name: str) -> dict[tuple[str, str], np.ndarray]:
        """(kind, axes) -> [count, bytes] of one run of a computation, including the computations that it calls."""
        total: dict[tuple[str, str], np.ndarray] = {}
        instructions = self._computations.get(name, [])
        # Update and done of an asynchronous collective repeat its text, so only its start counts.
        starts = any("AsyncCollectiveStart" in i.rest for i in instructions)
        for i in instructions:
            kind = _COLLECTIVE.fullmatch(i.op)
            if kind:
                if "chain_id=" not in i.rest or starts:
                    _add(total, self._collective(kind[1], i, "all-reduce-scatter" in name))
            elif i.op == "while":
                body, condition = (_called(i.rest, key) for key in ("body", "condition"))
                told = re.search(r'known_trip_count":\{"n":"(\d+)"', i.rest)  # printed by the CPU and GPU compilers
                _add(total, self.cost(body), int(told[1]) if told else self._trips(condition, body))
            elif i.op == "conditional":
                _add(total, max((self.cost(b) for b in _branches(i.rest)), key=_bytes, default={}))
            else:
                for called in re.findall(r"(?:calls|to_apply|called_computation)=%?([\w.\-]+)", i.rest):
                    _add(total, self.cost(called))
        return total

    def _collective(self, kind: str, i: _Instruction, scattered: bool) -> dict[tuple[str, str], np.ndarray]:
        if kind == "collective-permute":
            axes, size = _axes_of_pairs(i.rest, self._mesh), 2
        else:
            group = _group(i.rest, math.prod(self._mesh.values()))
            axes, size = _axes(group, self._mesh), len(group)
        nbytes = max((_array_bytes(*a) for a in _ARRAY.findall(i.shape)), default=0)
        if kind == "all-reduce" and scattered:
            kind = "reduce-scatter"
            nbytes = nbytes / size  # one chip keeps only its slice
        share = (size - 1) / size
        moved = {"all-gather": share, "all-reduce": 2 * share, "reduce-scatter": size - 1.0, "all-to-all": share}
        return {(kind, axes): np.array([1.0, nbytes * moved.get(kind, 1.0)])}

    def _trips(self, condition: str, body: str) -> int:
        """Iterations of a loop whose counter runs from 0 to a constant; for other loops `loop_trips`."""
        tests = self._computations.get(condition, [])
        test = next((i for i in tests if i.op == "compare" and "direction=LT" in i.rest and i is tests[-1]), None)
        if test is None:
            return self._loop_trips
        counter, limit = _operands(test.rest)[:2]
        bound = _constant(tests, limit)
        place = next((re.search(r"index=(\d+)", i.rest) for i in tests if i.name == counter), None)
        if bound is None or place is None:
            return self._loop_trips
        return math.ceil(bound / self._step(body, int(place[1])))

    def _step(self, body: str, place: int) -> int:
        """Increment of the counter per run of the body (2 if the compiler unrolled the loop once)."""
        instructions = self._computations.get(body, [])
        names = {i.name: i for i in instructions}
        root = instructions[-1] if instructions else None
        if root is None or root.op != "tuple" or place >= len(_operands(root.rest)):
            return 1
        new = names.get(_operands(root.rest)[place])
        while new is not None and new.op in ("copy", "bitcast"):
            new = names.get(_operands(new.rest)[0])
        if new is None or new.op != "add":
            return 1
        return next((c for o in _operands(new.rest) if (c := _constant(instructions, o))), 1)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif current and (found := _INSTRUCTION.match(line.strip())):
            computations[current].append(_Instruction(*found.groups()))
    return computations, entry


def _add(total: dict, more: dict, times: float = 1.0) -> None:
    for key, value in more.items():
        total[key] = total.get(key, 0.0) + times * value


def _bytes(cost: dict) -> float:
    return sum(value[1] for value in cost.values())


def _called(rest: str, key: str) -> str:
    found = re.search(rf"\b{key}=%?([\w.\-]+)", rest)
    return found[1] if found else ""


def _branches(rest: str) -> list[str]:
    many = re.search(r"branch_computations=\{([^}]*)\}", rest)
    if many:
        return [name.strip().lstrip("%") for name in many[1].split(",")]
    return [name for key in ("true_computation", "false_computation") if (name := _called(rest, key))]


def _operands(rest: str) -> list[str]:
    inside = re.sub(r"/\*.*?\*/", "", rest.split(")")[0])
    return [part.strip().split(" ")[-1].lstrip("%") for part in inside.split(",")]


def _constant(instructions: list[_Instruction], name: str) -> int | None:
    for i in instructions:
        if i.name == name and i.op == "constant" and (found := re.match(r"(\d+)\)", i.rest)):
            return int(found[1])
    return None


def _array_bytes(kind: str, sizes: str) -> float:
    return _BYTES.get(kind, 0) * math.prod(int(s) for s in sizes.split(",") if s)


def _group(rest: str, devices: int) -> list[int]:
    """The first group of devices of a collective, in any of the notations; all devices if no group is written."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return [int(d) for d in found[1].split(",")]
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        sizes = [int(s) for s in found[3].split(",")]
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        ids = ids.transpose([int(d) for d in found[4].split(",")]) if found[4] else ids
        return ids.reshape(int(found[1]), int(found[2]))[0].tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'?(\w+)'?=(\d+)", found[1])}
        inside = re.findall(r"\w+", found[2])
        ids = np.arange(math.prod(sizes.values())).reshape(*sizes.values())
        order = [n for n in sizes if n not in inside] + [n for n in sizes if n in inside]
        ids = ids.transpose([list(sizes).index(n) for n in order])
        return ids.reshape(-1, math.prod(sizes[n] for n in inside))[0].tolist()
    return list(range(devices))


def _axes(group: list[int], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which the members of a group differ; "" if the group is not a full block of the mesh."""
    places = np.stack(np.unravel_index(np.array(group), tuple(mesh.values())))
    differ = [axis for axis, where in zip(mesh, places, strict=True) if len(set(where.tolist())) > 1]
    return "+".join(differ) if math.prod(mesh[a] for a in differ) == len(group) else ""


def _axes_of_pairs(rest: str, mesh: Mapping[str, int]) -> str:
    """The mesh axes that a permutation's sources and targets differ in."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
    numbers = np.array([int(d) for d in re.findall(r"\d+", pairs[1])]).reshape(-1, 2) if pairs else np.zeros((0, 2), int)
    source, target = (np.stack(np.unravel_index(numbers[:, i], tuple(mesh.values()))) for i in (0, 1))
    return "+".join(axis for axis, s, t in zip(mesh, source, target, strict=True) if (s != t).any())
