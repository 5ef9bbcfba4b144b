"""Does RL learn with every seed? Trains the RL stage of one or more configs with several seeds, all from the SFT policy and the
reward model of one finished run. Compares the gold rate with SFT's on the held-out prompts.

    python benchmarks/learning.py runs/demo configs/greetings_demo_ppo.py configs/greetings_demo.py --seeds 0 1 2

Prints one row per config and seed, and writes it to OUT/learning.json. Finished parts are skipped when you start it again. A
seed changes sampling and the order of prompts; SFT and reward model stay the same. Results: RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlaif_jax.config import RunConfig, load_config
from rlaif_jax.evaluation.compare import System, difference, figures
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run, open_run, write_json
from rlaif_jax.runs.models import RunModels
from rlaif_jax.stages.evaluate import Answers
from rlaif_jax.stages.pipeline import run

_SHARED = ("tokenizer", "sft", "reward")  # stages of the base run that all seeds share


def experiment_of(base: Path, out: Path, cfg: RunConfig, console: Console) -> Run:
    """Opens a new run folder in which the shared stages are links to the base run's."""
    experiment = open_run(out, cfg, console)
    for stage in _SHARED:
        if not (base / stage / "done.json").exists():
            raise SystemExit(f"{base} has no finished stage {stage!r}: run `rlaif run` there first")
        if not (out / stage).exists():
            (out / stage).symlink_to((base / stage).resolve())
    return experiment


def compare(experiment: Run) -> dict[str, float]:
    """Gold rates of SFT and RL with their paired difference and its interval; length and distinct-2 relative to SFT."""
    answers, prompts = Answers(experiment, RunModels(experiment)), RunData(experiment).eval_prompts()
    sft, rl = (System(name, "", tuple(answers.graded(name, prompts))) for name in ("sft", "rl"))
    before, after, change = figures(sft), figures(rl), difference(sft, rl, "excellent")
    return {
        "sft": before["excellent"].value, "rl": after["excellent"].value, "gain": change.value, "low": change.low,
        "high": change.high, "length": after["length_chars"].value / before["length_chars"].value,
        "distinct_2": after["distinct_2"].value / before["distinct_2"].value, "n": change.n,
    }  # fmt: skip


def main() -> None:
    """Trains every config with every seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run, for example runs/demo")
    parser.add_argument("configs", type=Path, nargs="+", help="configs whose rl section is trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    args = parser.parse_args()
    console, rows = Console(highlight=False), []
    for path in args.configs:
        for seed in args.seeds:
            cfg = dataclasses.replace(load_config(path), seed=seed)
            experiment = experiment_of(args.run, args.out / f"{cfg.name}-{seed}", cfg, console)
            run(experiment, ["rl"])
            rows.append({"config": cfg.name, "seed": seed, **compare(experiment)})
            write_json(args.out / "learning.json", rows)
    table = Table("config", "seed", "SFT gold", "RL gold", "gain [95 %]", "length", "distinct-2")
    for r in rows:
        gain = f"{100 * r['gain']:+.1f} [{100 * r['low']:+.1f}, {100 * r['high']:+.1f}]"
        table.add_row(r["config"], str(r["seed"]), f"{r['sft']:.1%}", f"{r['rl']:.1%}", gain, f"x {r['length']:.2f}",
                      f"x {r['distinct_2']:.2f}")  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
