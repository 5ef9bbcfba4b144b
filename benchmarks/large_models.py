"""Do large models fit on one device, and how fast do they train? Runs the real stages, from a Hugging Face folder of random
weights with a preset's shapes to an exported model, at the paper's setting: 32 prompts x 4 samples, 256 + 512 tokens.

    python benchmarks/large_models.py lora --out runs/large-lora       # Qwen2.5-7B: adapters of rank 16, one base in memory
    python benchmarks/large_models.py full --out runs/large-full       # Qwen2.5-1.5B: all weights, float32 masters

To try it on a CPU: `--preset tiny-1m --prompts 2 --prompt-tokens 48 --response-tokens 8`. `--set` changes any config field, for
example `--set rl.train.optimizer.moments=int8`. OUT gets the model folder, the run, the exported folder and figures.json with
the peak memory of device and host after each part. Disk: 45 GB (lora: weights twice), 50 GB (full: weights twice, and the
checkpoints of reward model and policy with their optimizer states).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from rlaif_jax.commands.export import export
from rlaif_jax.config import CorpusConfig, DataConfig, RewardConfig, RlConfig, RunConfig, TrainConfig
from rlaif_jax.config.overrides import overridden
from rlaif_jax.data import corpus
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.models import transformer
from rlaif_jax.models.hf_config import to_hf
from rlaif_jax.models.hf_weights import save_params
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig, parameter_count, preset
from rlaif_jax.runs.folder import open_run, write_json
from rlaif_jax.sampling.filters import SamplingConfig
from rlaif_jax.sharding import MeshConfig, Placement, make_mesh
from rlaif_jax.stages import pipeline
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.optimizer import OptimizerConfig

PRESETS = {"lora": "qwen2.5-7b", "full": "qwen2.5-1.5b"}
_CORPUS = CorpusConfig(sft=500, pairs=200, labelled=60, rl_prompts=400, eval_prompts=16)
_SPREAD = 5.0  # standard deviation of the logits of the tokenizer's tokens, so that no other token of a large vocabulary is sampled


def random_folder(folder: Path, shapes: ModelConfig, place: Placement, shard_bytes: int = 2 * 10**9) -> ModelConfig:
    """Writes random bfloat16 weights of these shapes in shards, config.json and a small tokenizer; returns the model's config."""
    rows = corpus.generate(0, _CORPUS).sft
    tokenizer = Tokenizer.train([t for r in rows for t in (r["prompt"], r["response"])], 2048, folder)
    cfg = dataclasses.replace(shapes, param_dtype="bfloat16").with_vocab(tokenizer.vocab_size)
    axes, own = transformer.logical_axes(cfg), tokenizer.vocab_size
    output = "embed" if cfg.tied_embeddings else "lm_head"

    def init(key: jax.Array) -> dict:
        params = transformer.init(cfg, key)
        spread = _SPREAD / (math.sqrt(cfg.width) * 0.02)
        louder = {name: 300 * params["layers"][name] for name in ("o", "down")}  # or tied embeddings repeat the last token
        params |= {output: params[output].at[:own].multiply(spread)}
        return params | {"layers": params["layers"] | louder}

    shardings = place.tree(axes, jax.eval_shape(init, jax.random.key(0)))
    params = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    save_params(params, cfg, folder, place, dtype="bfloat16", max_shard_bytes=shard_bytes)
    config = to_hf(cfg, scalar=False, dtype="bfloat16", eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id)
    write_json(folder / "config.json", config)
    return cfg


def config(case: str, folder: Path, args: argparse.Namespace) -> RunConfig:
    """The run's config: one step of the reward model, then GRPO from the folder's weights."""
    optimizer = OptimizerConfig(1e-5, "constant")
    train = TrainConfig(
        steps=args.steps, batch_size=args.prompts, grad_accumulation=args.accumulation, checkpoint_every=args.steps, log_every=1,
        max_to_keep=1, optimizer=optimizer,
    )  # fmt: skip
    sampling, length = SamplingConfig(max_tokens=args.response_tokens), args.prompt_tokens + args.response_tokens
    # The learning rate is so high that rewards differ after one step: equal rewards give no gradient, and nothing to measure.
    pairs = TrainConfig(steps=1, batch_size=4, checkpoint_every=1, max_to_keep=1, optimizer=OptimizerConfig(1e-2, "constant"))
    cfg = RunConfig(
        name=f"large_{case}", data=DataConfig(corpus=_CORPUS), sft=None, lora=LoraConfig() if case == "lora" else None,
        mesh=MeshConfig(data=1, fsdp=-1),
        model=ModelConfig(
            init_from=str(folder), param_dtype="bfloat16", compute_dtype="bfloat16", remat="full", logit_chunk=128
        ),
        reward=RewardConfig(pairs, max_length=max(length, 96)),
        rl=RlConfig(
            train, group_size=4, num_minibatches=2, max_prompt_tokens=args.prompt_tokens, sampling=sampling,
            eval_prompts=args.prompts, samples_every=1,
        ),
    )  # fmt: skip
    return overridden(cfg, args.overrides)


def memory() -> dict[str, float]:
    """Peak memory so far in GiB: of this process on the host, and of the fullest device if the backend reports it."""
    found = [d.memory_stats() or {} for d in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in found if "peak_bytes_in_use" in stats]
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"host": host / 2**30} | ({"device": max(peaks) / 2**30} if peaks else {})


def measure(case: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Writes the folder, runs the stages and exports the policy.

    Returns seconds and peak memory of each part, and the means over all RL steps except the first.
    """
    folder, parts = args.out / "folder", {}

    def timed(name: str, work):
        began = time.perf_counter()
        result = work()
        parts[name] = {"seconds": time.perf_counter() - began, **memory()}
        return result

    place = Placement(make_mesh(MeshConfig(data=1, fsdp=-1)))
    model = timed("random weights", lambda: random_folder(folder, preset(args.preset or PRESETS[case]), place))
    cfg = config(case, folder, args)
    experiment = open_run(args.out / "run", cfg, console)
    for stage in ("tokenizer", "reward", "rl"):
        timed(stage, lambda stage=stage: pipeline.run(experiment, {stage: pipeline.ALL_STAGES[stage]}))
    timed("export", lambda: export(experiment, "rl", args.out / "exported"))
    rows = [r for r in read_metrics(experiment.folder("rl") / "metrics.jsonl") if "loss" in r]
    later = rows[1:] or rows
    names = ["seconds_per_step", *(f"seconds/{p}" for p in ("rollout", "reward", "update")), "tokens", "length_tokens", "grad_norm"]
    device = jax.devices()[0]
    return {
        "case": case, "parameters": parameter_count(model), "device": device.device_kind, "devices": jax.device_count(),
        "steps": len(rows), "rl": {n: sum(r[n] for r in later) / len(later) for n in names}, "skipped": rows[-1]["skipped"],
        "parts": parts,
    }  # fmt: skip


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted(PRESETS))
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--preset", default="", help="a preset with other shapes, for example tiny-1m")
    parser.add_argument("--steps", type=int, default=4, help="RL steps (default: 4); the first one compiles")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--response-tokens", type=int, default=512)
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches per mini-batch (default: 4)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="FIELD=VALUE")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures one case, prints a table and writes figures.json."""
    args, console = arguments(argv), Console(highlight=False)
    if args.out.exists():
        raise SystemExit(f"{args.out} exists; choose another --out")
    figures = measure(args.case, args, console)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    table = Table("part", "seconds", "device GiB (peak so far)", "host GiB (peak so far)")
    for name, part in figures["parts"].items():
        table.add_row(name, f"{part['seconds']:.1f}", f"{part['device']:.1f}" if "device" in part else "-", f"{part['host']:.1f}")
    console.print(f"{figures['case']}: {figures['parameters']:,} parameters on {figures['devices']} x {figures['device']}")
    console.print(table)
    console.print(", ".join(f"{name} {value:.4g}" for name, value in figures["rl"].items()))
    return figures


if __name__ == "__main__":
    main()
