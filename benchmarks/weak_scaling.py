"""Weak scaling: compiles one program for growing TPU slices, with a constant number of prompts per chip. Prints the memory per
chip, the bytes that a chip receives, and lower bounds on time. It needs no TPU: programs are compiled, never run.

    python benchmarks/weak_scaling.py configs/qwen25_7b_grpo_v5p_32.py --layout split --json split.json
    python benchmarks/weak_scaling.py configs/qwen25_7b_grpo_v5p_32.py --layout copies --json copies.json

`--layout split` shards the weights over all chips (fsdp), as far as the model's width is divisible. `--layout copies` shards them
over `--fsdp` chips and replicates the shards over the rest (data). The full model is compiled: its layers are one scan, so depth
does not cost compile time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from rlaif_jax.config import RunConfig, load_config
from rlaif_jax.plan.chips import parse_topology
from rlaif_jax.plan.compiled import Row, human, plan_run

TOPOLOGIES = tuple(f"v5p:{shape}" for shape in ("2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"))


def grown(cfg: RunConfig, chips: int, layout: str, fsdp: int, prompts_per_chip: int) -> RunConfig:
    """The config with `prompts_per_chip` prompts per chip and step, on a mesh of all chips.

    "split" uses the largest fsdp axis that divides the model's width: with a larger one, the weights would be replicated.
    """
    split = math.gcd(chips, cfg.model.width) if layout == "split" else fsdp
    mesh = dataclasses.replace(cfg.mesh, data=chips // split, fsdp=split, tensor=1)
    train = dataclasses.replace(cfg.rl.train, batch_size=prompts_per_chip * chips)
    return dataclasses.replace(cfg, mesh=mesh, rl=dataclasses.replace(cfg.rl, train=train))


def figures(row: Row, chips: int) -> dict:
    """One line of the table; bytes and seconds are per chip and call."""
    received: dict[str, float] = {}
    for found in row.collectives:
        received[found.axes or "other"] = received.get(found.axes or "other", 0.0) + found.bytes
    return {"chips": chips, "fits": row.fits, "memory": row.total, "flops": row.flops, "received": received,
            "collectives": [dataclasses.asdict(c) for c in row.collectives], "seconds": row.seconds,
            "compile_seconds": row.compile_seconds}  # fmt: skip


def main() -> None:
    """Compiles for each topology (one progress line each), writes the JSON file after each, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES, help="default: v5p, 16 to 2,048 chips")
    parser.add_argument("--program", default="rl: update")
    parser.add_argument("--layout", choices=("split", "copies"), default="split")
    parser.add_argument("--fsdp", type=int, default=16, help="with --layout copies: shards of the weights (default: 16)")
    parser.add_argument("--prompts-per-chip", type=int, default=2, help="default: 2, which is the paper's batch on 16 chips")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    console, cfg, lines = Console(highlight=False), load_config(args.config), []
    for topology in args.topology:
        chips = parse_topology(topology)[1]
        (row,) = plan_run(grown(cfg, chips, args.layout, args.fsdp, args.prompts_per_chip), topology, [args.program])
        lines.append({"topology": topology, **figures(row, chips)})
        console.print(f"{topology}: compiled in {row.compile_seconds:.0f} s", style="dim")
        if args.json is not None:
            args.json.write_text(json.dumps(lines, indent=1), encoding="utf-8")
    table = Table("chips", "topology", "memory", "TFLOP", "received per axes", "compute", "memory", "collectives",
                  title=f"{args.program}, {args.layout}: per chip and call")  # fmt: skip
    for line in lines:
        received = ", ".join(f"{axes} {human(n)}" for axes, n in line["received"].items() if n >= 2**20)
        seconds = [f"{line['seconds'][kind]:.3g} s" if line["fits"] else "-" for kind in ("compute", "memory", "collectives")]
        table.add_row(f"{line['chips']:,}", line["topology"], human(line["memory"]) + ("" if line["fits"] else " (does not fit)"),
                      f"{line['flops'] / 1e12:.3g}", received, *seconds)  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
