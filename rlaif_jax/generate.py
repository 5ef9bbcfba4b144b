"""`rlaif generate`: answers to prompts, or a chat, from a checkpoint of a run."""

from __future__ import annotations

import argparse
import time

from rich.console import Console

from rlaif_jax.data import pipelines
from rlaif_jax.data.records import Prompt
from rlaif_jax.errors import UserError
from rlaif_jax.experiment import Experiment, open_run
from rlaif_jax.models import transformer
from rlaif_jax.run_models import RunModels
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.rollout import make_sampler
from rlaif_jax.trainers.rollout import to_exchanges


def run_generate(args: argparse.Namespace, console: Console) -> None:
    """Answers `args.prompt`; without one, reads prompts from standard input until it ends."""
    experiment = open_run(args.run, console)
    answer = Answerer(experiment, args.stage, args.samples, args.seed, SamplingConfig(
        args.temperature, args.top_k, args.top_p, 0.0, args.max_tokens,
    ))  # fmt: skip
    if args.prompt:
        for prompt in args.prompt:
            console.print(f"> {prompt}", style="bold", markup=False)
            for text in answer(prompt):
                console.print(text, markup=False)
        return
    console.print("Type a request; an empty line or Ctrl-D ends.", style="dim")
    while prompt := _ask(console):
        for text in answer(prompt):
            console.print(text, markup=False)


def _ask(console: Console) -> str:
    try:
        return console.input("> ").strip()
    except EOFError:
        return ""


class Answerer:
    """Samples answers; every call draws new ones, the same again for the same seed and order of calls."""

    def __init__(self, experiment: Experiment, stage: str, samples: int, seed: int, sampling: SamplingConfig):
        models = RunModels(experiment)
        self._experiment, self._models, self._samples, self._seed = experiment, models, samples, seed
        self._params = models.policy(stage)
        self._sampling = traced(sampling, models.tokenizer.eos_ids)
        self._sampler = make_sampler(
            models.config, transformer.logical_axes(models.config), experiment.place, group=samples,
            max_tokens=sampling.max_tokens, pad_id=models.tokenizer.pad_id,
        )  # fmt: skip
        self._calls = 0
        self.seconds = 0.0

    def __call__(self, prompt: str) -> list[str]:
        record, length = Prompt(prompt), self._experiment.cfg.rl.max_prompt
        rows, too_long = pipelines.prompt_rows([record], self._models.tokenizer, length)
        if too_long:
            raise UserError(f"the prompt is longer than {length} tokens (rl.max_prompt)")
        shards = self._experiment.place.row_shards
        batch = next(pipelines.eval_batches(rows, shards))
        began = time.perf_counter()
        decoded = self._sampler(
            self._params, batch["tokens"], batch["segment_ids"], self._seed, self._calls, self._sampling
        )  # fmt: skip
        exchanges, _ = to_exchanges(decoded, [record] * shards, self._samples, self._models.tokenizer)
        self.seconds = time.perf_counter() - began
        self._calls += 1
        return [e.response + ("" if e.finished else " ...") for e in exchanges[: self._samples]]


