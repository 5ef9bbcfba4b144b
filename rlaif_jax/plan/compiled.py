"""`rlaif plan CONFIG --topology v5e:8x8`: compiles every program of a run for a TPU, without a TPU, and reports its costs."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from rlaif_jax.config import RunConfig
from rlaif_jax.config.overrides import overridden
from rlaif_jax.errors import UserError
from rlaif_jax.plan.abstract import Program, chip_bytes
from rlaif_jax.plan.chips import CHIPS, Chip, parse_topology, topology_devices
from rlaif_jax.plan.estimate import planned_mesh, planned_model, print_uneven
from rlaif_jax.plan.flops import count_flops
from rlaif_jax.plan.hlo import Collective, collectives
from rlaif_jax.plan.programs import build_programs
from rlaif_jax.runs.folder import write_json
from rlaif_jax.sharding import Placement, make_mesh


@dataclasses.dataclass(frozen=True)
class Row:
    """The costs of one program on one chip. Bytes and operations are per call.

    Attributes:
      arguments, temporaries, results: bytes of the program. Results that reuse a donated argument's memory are not counted.
      held: bytes of other arrays that the stage keeps on the chip.
      total: the sum of these. If the program does not fit, the compiler's figure plus `held`.
      fits: whether total is within the chip's memory.
      flops: operations of matrix products, including recomputation.
      collectives: bytes that the chip receives, by kind of collective and mesh axes.
      seconds: lower bounds from compute, memory (arguments, results, reads of weights and cache) and collectives.
      step_seconds: the largest of these bounds, reached only if all three overlap perfectly.
      compile_seconds: time of this compilation.
      remedy: settings with which the program fits; "" if it fits, or if none was found.
    """

    name: str
    arguments: int
    temporaries: int
    results: int
    held: int
    total: int
    fits: bool
    flops: float
    collectives: tuple[Collective, ...]
    seconds: dict[str, float]
    step_seconds: float
    compile_seconds: float
    remedy: str = ""


def plan_run(cfg: RunConfig, topology: str, only: Sequence[str] = (), console: Console | None = None) -> Iterator[Row]:
    """Compiles the programs of a run for a topology and yields a row for each. `only`: names of some programs; empty: all."""
    chip, devices = CHIPS[parse_topology(topology)[0]], topology_devices(topology)
    programs = _programs(cfg, devices)
    unknown = [name for name in only if name not in programs]
    if unknown:
        raise UserError(f"--program {unknown[0]!r}: this run has {', '.join(programs)}")
    for name in only or programs:
        if console is not None:
            console.print(f"{name}: compiling", style="dim", highlight=False)
        place, program = programs[name]
        row = measure(program, place, chip)
        yield row if row.fits else dataclasses.replace(row, remedy=_remedy(cfg, program, devices, chip))


def _programs(cfg: RunConfig, devices: Sequence[Any]) -> dict[str, tuple[Placement, Program]]:
    place = Placement.of(make_mesh(cfg.mesh, devices), cfg.mesh.rules)
    return {p.name: (place, p) for p in build_programs(cfg, planned_model(cfg), place)}


def _remedy(cfg: RunConfig, program: Program, devices: Sequence[Any], chip: Chip) -> str:
    """The first remedy with which the program fits, as command-line options; "" if there is none."""
    for settings in program.remedies:
        try:
            programs = _programs(overridden(cfg, settings), devices)
            place, other = next(found for found in programs.values() if program.name in (found[1].name, *found[1].also))
        except UserError:  # the config refuses this setting
            continue
        if measure(other, place, chip).fits:
            return " ".join(f"--set {item}" for item in settings)
    return ""


def measure(program: Program, place: Placement, chip: Chip) -> Row:
    """Compiles a program and returns its costs."""
    traced = program.function.trace(*program.arguments)
    flops = count_flops(traced.jaxpr, program.loop_trips) / place.mesh.size
    held = sum(chip_bytes(tree) for tree in program.held)
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        took = time.perf_counter() - began
        arguments = chip_bytes(program.arguments)
        return Row(program.name, arguments, 0, 0, held, needed + held, False, flops, (), {}, 0.0, took)
    took, memory = time.perf_counter() - began, compiled.memory_analysis()
    twice = sum(chip_bytes(leaf) for leaf in jax.tree.leaves(program.arguments)) - chip_bytes(program.arguments)
    arguments, results = memory.argument_size_in_bytes - twice, memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    found = collectives(compiled.as_text(), dict(place.mesh.shape), program.loop_trips)
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes + program.read
    seconds = {
        "compute": flops / chip.flops, "memory": moved / chip.bandwidth,
        "collectives": sum(c.bytes for c in found) / chip.links,
    }  # fmt: skip
    total = arguments + results + temporaries + held
    return Row(
        program.name, arguments, temporaries, results, held, total, total <= chip.memory, flops, tuple(found), seconds,
        max(seconds.values()), took,
    )  # fmt: skip


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def needed_bytes(message: str) -> int | None:
    """The bytes that a program needs, from the compiler's message that it does not fit ("Used 20.31G of 15.75G hbm", or "HLO
    temporaries (125.14G) exceeds available HBM"). None for other messages."""
    size = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"Used {size} of \S+ hbm", message) or re.search(rf"HLO temporaries \({size}\) exceeds", message)
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def run_plan(
    cfg: RunConfig, topology: str, only: Sequence[str], path: Path | None, console: Console
) -> bool:  # fmt: skip
    """Prints the tables, and writes them as JSON to `path` after each program. Returns whether everything fits."""
    if path is not None:
        _require_own_file(path)
    jax.config.update("jax_platforms", "cpu")  # compiling needs no TPU; do not let JAX look for one
    rows: list[Row] = []
    for row in plan_run(cfg, topology, only, console):
        rows.append(row)
        if path is not None:
            write_json(path, as_json(cfg, topology, rows))
    print_rows(cfg, topology, rows, console)
    if parse_topology(topology)[1] > 4:  # more chips than the smallest hosts have, so there may be several processes
        print_uneven(cfg, Placement.of(planned_mesh(cfg.mesh), cfg.mesh.rules), console)
    return all(row.fits for row in rows)


def _require_own_file(path: Path) -> None:
    """UserError if the file cannot be written, or exists and is not a plan."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        path.with_suffix(path.suffix + ".tmp").touch()
        path.with_suffix(path.suffix + ".tmp").unlink()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--json {path} cannot be written: {error}") from error
    if text and '"programs"' not in text:
        raise UserError(f"--json {path} exists and holds no plan; choose another file")


def as_json(cfg: RunConfig, topology: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as plain data."""
    version, chips = parse_topology(topology)
    return {
        "config": cfg.name, "topology": topology, "chips": chips, "chip": dataclasses.asdict(CHIPS[version]),
        "programs": [dataclasses.asdict(row) for row in rows],
    }  # fmt: skip


def print_rows(cfg: RunConfig, topology: str, rows: Sequence[Row], console: Console) -> None:
    """Prints two tables: memory and time, then collectives."""
    version, chips = parse_topology(topology)
    chip = CHIPS[version]
    console.print(f"{cfg.name} on {topology}: {chips} chips of {chip.memory / 2**30:.0f} GiB; compiled, not run")
    table = Table("program", "memory", "of which held", "fits", "TFLOP", "at least", "bound by", title="per chip and call")
    for row in rows:
        bound = max(row.seconds, key=row.seconds.get) if row.seconds else "-"
        table.add_row(
            row.name, human(row.total), human(row.held), "yes" if row.fits else "NO", f"{row.flops / 1e12:.3g}",
            f"{row.step_seconds:.3g} s" if row.seconds else "-", bound,
        )  # fmt: skip
    console.print(table)
    moved = Table("program", "collective", "mesh axes", "runs", "received", title="per chip and call, 1 MiB or more")
    for row in rows:
        for c in row.collectives:
            if c.bytes >= 2**20:
                moved.add_row(row.name, c.kind, c.axes or "other", f"{c.count:,.0f}", human(c.bytes))
    console.print(moved)
    for row in rows:
        if not row.fits:
            advice = f"it fits with {row.remedy}" if row.remedy else "use more chips, or a smaller batch or model"
            console.print(f"{row.name} does not fit: {human(row.total)} of {human(chip.memory)}; {advice}", highlight=False)


def human(nbytes: float) -> str:
    """Bytes as MiB below 1 GiB, else GiB."""
    return f"{nbytes / 2**20:,.1f} MiB" if nbytes < 2**30 else f"{nbytes / 2**30:,.2f} GiB"
