"""The evaluation: every system answers the same held-out prompts, every grader scores the answers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.progress import track

from rlaif_jax.config import RunConfig
from rlaif_jax.config.stages import FEEDBACK, SFT, Stage, policy_stages
from rlaif_jax.data import corpus, pipelines
from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt
from rlaif_jax.data.rows import prompt_rows
from rlaif_jax.data.streams import stream
from rlaif_jax.evaluation import agreement
from rlaif_jax.evaluation.compare import GradedSample
from rlaif_jax.models import transformer
from rlaif_jax.rewards.base import RewardFn, RewardResult, Sample
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run, write_json
from rlaif_jax.runs.grading import Graders, independence
from rlaif_jax.runs.models import BASE, RunModels
from rlaif_jax.sampling.filters import traced
from rlaif_jax.sampling.sampler import Sampler, make_sampler
from rlaif_jax.trainers.rollout import to_samples

BEST_OF = "best_of"
DATA = "data"  # stands for the data's own best answers in a comparison of two answers
_PAIRS = 500  # held-out pairs that every grader scores


def systems_of(cfg: RunConfig) -> dict[str, str]:
    """The systems that a run compares: name -> what it is."""
    policies = {stage.name: stage.title for stage in policy_stages(cfg) if stage.name != FEEDBACK.name}
    found = {BASE: "before any training"}
    if SFT.name in policies:
        found[SFT.name] = policies.pop(SFT.name)
    if cfg.evaluation.best_of > 1:
        found[BEST_OF] = f"the best of {cfg.evaluation.best_of} SFT answers by the reward"
    return found | policies


def start_of(cfg: RunConfig) -> str:
    """The system that every trained policy is compared with: SFT, or the base where there was no SFT."""
    return SFT.name if cfg.sft is not None else BASE


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """Writes samples_<system>.json for every system, graders.json (how well each grader agrees with held-out labels) and wins.json.

    Every grader scores every system: the judge also scores the policy that was trained with the reward model, and vice versa.
    """
    data, models, cfg, folder = RunData(x), RunModels(x), x.cfg.evaluation, x.folder(stage.name)
    prompts, graders = data.eval_prompts(), Graders(x, models, cfg.batch_size)
    answers = Answers(x, models, graders)
    graded = {name: answers.graded(name, prompts) for name in systems_of(x.cfg)}
    if debated := x.cfg.debated_prompts:
        graded = {name: _with_debates(graders, prompts, samples, debated) for name, samples in graded.items()}
    for name, samples in graded.items():
        write_json(folder / f"samples_{name}.json", [dataclasses.asdict(s) for s in samples])
    write_json(folder / "independence.json", independence(x.cfg, data))
    write_json(folder / "graders.json", _grader_quality(data, graders))
    texts = {name: _texts(prompts[: cfg.win_rates], samples) for name, samples in graded.items()}
    write_json(folder / "wins.json", _wins(x, answers, data, graders, texts) if cfg.win_rates else [])
    return {"prompts": len(prompts)}


class Answers:
    """Samples and scores the answers of a run's systems.

    The noise of an answer depends on the seed and on its prompt's place in the list, not on `evaluation.batch_size`. It is the same
    for every system.
    """

    def __init__(self, x: Run, models: RunModels, graders: Graders | None = None):
        self._x, self._models, self._graders = x, models, graders
        self._sampler = functools.cache(self._make_sampler)  # one program for all systems

    def _make_sampler(self, group: int) -> Sampler:
        models = self._models
        return make_sampler(
            models.config, transformer.logical_axes(models.config), self._x.place, group=group,
            max_tokens=self._x.cfg.evaluation.sampling.max_tokens, pad_id=models.tokenizer.pad_id,
        )  # fmt: skip

    def graded(self, name: str, prompts: Sequence[Prompt]) -> list[GradedSample]:
        """One answer per prompt with its scores; without graders, those of the gold scorer alone."""
        samples, tokens = self.sampled(name, prompts)
        size, scores = self._x.cfg.evaluation.batch_size, [({}, ())] * len(samples)
        if self._graders is not None:
            scores = [row for i in range(0, len(samples), size) for row in self._graders.scores(samples[i : i + size])]
        found = []
        for record, sample, count, (own, none) in zip(prompts, samples, tokens, scores, strict=True):
            gold = _gold(record, sample)
            lacking = (*none, *(score for score, value in gold.items() if value is None))
            found.append(GradedSample(record.prompt, sample.response, count, sample.finished, gold | own, lacking))
        return found

    def sampled(self, name: str, prompts: Sequence[Prompt]) -> tuple[list[Sample], list[int]]:
        """One answer per prompt, sampled or the best of several, and its length in tokens."""
        x, models, cfg, found, lengths = self._x, self._models, self._x.cfg.evaluation, [], []
        group = cfg.best_of if name == BEST_OF else 1
        choose = self._graders.chooser(group) if group > 1 else None
        params = models.policy(SFT.name if name == BEST_OF else name)
        batches = list(pipelines.eval_batches(prompt_rows(prompts, models.tokenizer, x.cfg.max_prompt_tokens), cfg.batch_size))
        sampling, seed = traced(cfg.sampling, models.tokenizer.eos_ids), stream(x.cfg.seed, "evaluate")
        for number, batch in enumerate(track(batches, f"evaluate {name}", console=x.console, transient=True)):
            first_row = number * cfg.batch_size * group
            decoded = self._sampler(group)(params, batch["tokens"], batch["segment_ids"], seed, 0, sampling, first_row)
            records = [prompts[int(r)] for r in batch["row"]]
            samples, host = to_samples(decoded, records, group, models.tokenizer)
            chosen = np.arange(len(records)) if choose is None else best_of_groups(choose(samples), group)
            for i in chosen[np.flatnonzero(batch["row_mask"])]:
                found.append(samples[i])
                lengths.append(int(host.mask[i].sum()))
        return found, lengths


def best_of_groups(result: RewardResult, group: int) -> np.ndarray:
    """(P,) the row of the highest reward of each group of rows; an invalid one is taken only where all are."""
    values = np.where(result.valid, result.values, -np.inf).reshape(-1, group)
    return np.arange(len(values)) * group + np.argmax(values, axis=1)


def _gold(record: Prompt, sample: Sample) -> dict[str, float | None]:
    """Verdicts of the corpus's gold scorer, where the prompt comes from it."""
    if not corpus.Request.is_meta(record.meta):
        return {}
    request = corpus.Request.from_meta(record.meta)
    compliant = corpus.is_compliant(request, sample.response)
    excellent = sample.finished and corpus.is_excellent(request, sample.response)
    return {"excellent": float(excellent), "compliance": None if compliant is None else float(compliant)}


def _texts(prompts: Sequence[Prompt], graded: Sequence[GradedSample]) -> list[Sample]:
    """The answers to these prompts, as graders see them."""
    return [Sample(p.prompt, s.response, s.finished, p.system, p.meta) for p, s in zip(prompts, graded, strict=False)]


def _with_debates(
    graders: Graders, prompts: Sequence[Prompt], graded: Sequence[GradedSample], most: int
) -> list[GradedSample]:  # fmt: skip
    """The samples with the score "debate" on the first `most` prompts; it does not apply to the others."""
    verdicts = graders.debated(_texts(prompts[:most], graded))
    found = []
    for i, sample in enumerate(graded):
        lacking = sample.not_applicable if i < len(verdicts) else (*sample.not_applicable, "debate")
        scores = {**sample.scores, "debate": verdicts[i] if i < len(verdicts) else None}
        found.append(dataclasses.replace(sample, scores=scores, not_applicable=lacking))
    return found


def _wins(
    x: Run, answers: Answers, data: RunData, graders: Graders, texts: Mapping[str, Sequence[Sample]]
) -> list[dict[str, Any]]:
    """Who wins, prompt by prompt: every two systems but the base, and every system against the data's own best answers.

    Rows of {"a", "b", "by", "wins"}; "wins" is 1 where a wins, 0.5 for a tie, None without a verdict.
    """
    names = [name for name in texts if name != BASE or start_of(x.cfg) == BASE]
    found = [
        {"a": b, "b": a, "by": by, "wins": wins}
        for a, b in itertools.combinations(names, 2) for by, wins in graders.wins(texts[b], texts[a]).items()
    ]  # fmt: skip
    if best := data.reference_answers(x.cfg.evaluation.win_rates):
        records, theirs = [Prompt(e.prompt, e.system) for e in best], [Sample(e.prompt, e.response, True, e.system) for e in best]
        for name in texts:
            ours, _ = answers.sampled(name, records)
            found += [{"a": name, "b": DATA, "by": by, "wins": wins} for by, wins in graders.wins(ours, theirs).items()]
    return found


def _grader_quality(data: RunData, graders: Graders) -> dict[str, dict[str, float]]:
    """Agreement of each grader with the held-out labels and pairs (rows that are in training files left out)."""
    out: dict[str, dict[str, float]] = {}
    # A sample has no earlier turns, so rows of chats are left out here.
    held_out: list[LabelledResponse] = [r for r in data.labelled()[1] if not r.history] if data.has_labels else []
    if not held_out:
        return out
    labels, pairs = np.array([r.label for r in held_out]), [p for p in data.held_out_pairs() if not p.history][:_PAIRS]
    for name, reward in graders.rewards.items():
        result = reward([Sample(r.prompt, r.response, True, r.system, r.meta) for r in held_out])
        usable = result.valid & result.applies & np.isfinite(result.values)
        scores, known = result.values[usable], labels[usable]
        if not len(known):
            continue
        # A score without a zero point of its own is cut at the median.
        predicted = (scores > graders.zero_points.get(name, np.median(scores))).astype(int)
        out[name] = {
            "n": len(known), "auc": agreement.auc(scores, known), "accuracy": agreement.accuracy(predicted, known),
            "balanced_accuracy": agreement.balanced_accuracy(predicted, known),
            "kappa": agreement.cohen_kappa(predicted, known), **_pair_accuracy(reward, pairs),
        }  # fmt: skip
    return out


def _pair_accuracy(reward: RewardFn, pairs: Sequence[PreferencePair]) -> dict[str, float | None]:
    """How often the chosen answer of a pair scores higher: over all, and where length does not give it away."""
    if not pairs:
        return {}
    sides = [Sample(p.prompt, text, True, p.system, p.meta) for p in pairs for text in (p.chosen, p.rejected)]
    result = reward(sides)
    chosen, rejected = result.values.reshape(-1, 2).T
    known = (result.valid & np.isfinite(result.values)).reshape(-1, 2).all(axis=1)
    chars = np.array([[len(p.chosen), len(p.rejected)] for p in pairs]).T
    return {
        "pairs": agreement.pairwise_accuracy(chosen, rejected, known).value,
        "pairs of similar length": agreement.length_matched_accuracy(chosen, rejected, *chars, known).value,
    }
