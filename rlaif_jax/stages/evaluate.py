"""The evaluation: every system answers the same held-out prompts, every grader scores the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.progress import track

from rlaif_jax.config import RunConfig
from rlaif_jax.config.stages import FEEDBACK, GRADER, REWARD, SFT, Stage, policy_stages
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
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import BASE, RunModels
from rlaif_jax.runs.rewards import RunRewards
from rlaif_jax.sampling.filters import traced
from rlaif_jax.sampling.sampler import make_sampler
from rlaif_jax.trainers.rollout import to_samples

BEST_OF = "best_of"
# Graders whose verdict is shown as a share of good answers, and the score above which an answer is good.
_RATES = {"grader": 0.0, "judge": 0.5}
_PAIRS = 500  # held-out pairs that every grader scores


def systems_of(cfg: RunConfig) -> dict[str, str]:
    """The systems that a run compares: name -> what it is."""
    policies = {stage.name: stage.title for stage in policy_stages(cfg) if stage.name != FEEDBACK.name}
    found = {BASE: "before any training"}
    if SFT.name in policies:
        found[SFT.name] = policies.pop(SFT.name)
    if cfg.evaluation.best_of > 1:
        found[BEST_OF] = "the best of several SFT answers by the reward model"
    return found | policies


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """Writes samples_<system>.json for every system, and graders.json: how well each grader agrees with held-out labels.

    Every grader scores every system: the judge also scores the policy that was trained with the reward model, and vice versa.
    """
    data, models, cfg = RunData(x), RunModels(x), x.cfg.evaluation
    prompts, graders = data.eval_prompts(), graders_of(x, models, cfg.batch_size)
    answered = 0
    for name in systems_of(x.cfg):
        samples = answers(x, models, name, prompts, graders)
        answered = len(samples)
        write_json(x.folder(stage.name) / f"samples_{name}.json", [dataclasses.asdict(s) for s in samples])
    write_json(x.folder(stage.name) / "graders.json", _grader_quality(x, data, graders))
    return {"prompts": answered}


def graders_of(x: Run, models: RunModels, batch_size: int) -> dict[str, RewardFn]:
    """What scores the answers: score name -> reward."""
    rewards = RunRewards(x, models, RunLlms(x, models))
    graders: dict[str, RewardFn] = {}
    if x.cfg.reward is not None:
        graders["reward"] = rewards.scalar(REWARD.name, batch_size)
    if x.cfg.grader is not None:
        graders["grader"] = rewards.scalar(GRADER.name, batch_size)
    if x.cfg.judge is not None:
        graders["judge"] = rewards.judge(1, x.cfg.judge.single_mode)
    return graders | rewards.functions()


def answers(
    x: Run, models: RunModels, name: str, prompts: Sequence[Prompt], graders: Mapping[str, RewardFn]
) -> list[GradedSample]:
    """One answer per prompt, sampled or the best of several, scored; the same random numbers for every system."""
    cfg, graded = x.cfg.evaluation, []
    group = cfg.best_of if name == BEST_OF else 1
    params = models.policy(SFT.name if name == BEST_OF else name)
    sampler = make_sampler(
        models.config, transformer.logical_axes(models.config), x.place, group=group, max_tokens=cfg.sampling.max_tokens,
        pad_id=models.tokenizer.pad_id,
    )  # fmt: skip
    batches = list(pipelines.eval_batches(prompt_rows(prompts, models.tokenizer, x.cfg.max_prompt_tokens), cfg.batch_size))
    sampling = traced(cfg.sampling, models.tokenizer.eos_ids)
    for number, batch in enumerate(track(batches, f"evaluate {name}", console=x.console, transient=True)):
        decoded = sampler(params, batch["tokens"], batch["segment_ids"], stream(x.cfg.seed, "evaluate"), number, sampling)
        records = [prompts[int(r)] for r in batch["row"]]
        samples, host = to_samples(decoded, records, group, models.tokenizer)
        chosen = best_of_groups(graders["reward"](samples), group) if group > 1 else np.arange(len(records))
        samples, tokens = [samples[i] for i in chosen], host.mask[chosen].sum(axis=1)
        results = {grader: reward(samples) for grader, reward in graders.items()}
        for i in np.flatnonzero(batch["row_mask"]):
            scores = _gold(records[i], samples[i]) | _scores(results, i)
            graded.append(GradedSample(records[i].prompt, samples[i].response, int(tokens[i]), samples[i].finished, scores))
    return graded


def _scores(results: Mapping[str, RewardResult], i: int) -> dict[str, float | None]:
    """Every grader's score of row i, None where it is invalid; of those in `_RATES` 1 or 0."""
    scores = {g: float(r.values[i]) if r.valid[i] else None for g, r in results.items()}
    return scores | {g: float(scores[g] > threshold) for g, threshold in _RATES.items() if scores.get(g) is not None}


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


def _grader_quality(x: Run, data: RunData, graders: Mapping[str, RewardFn]) -> dict[str, dict[str, float]]:
    """Agreement of each grader with the held-out labels and pairs (rows that are in training files left out)."""
    out: dict[str, dict[str, float]] = {}
    if not data.has_labels:
        return out
    held_out: list[LabelledResponse] = data.labelled()[1]
    labels = np.array([r.label for r in held_out])
    pairs = data.held_out_pairs()[:_PAIRS]
    for name, reward in graders.items():
        result = reward([Sample(r.prompt, r.response, True, r.system, r.meta) for r in held_out])
        scores, known = result.values[result.valid], labels[result.valid]
        if not len(known):
            continue
        # A Bradley-Terry score or a function has no zero point of its own: its threshold is the median of the scores.
        binary = name == "judge" or (name == "grader" and x.cfg.grader.loss == "binary")
        predicted = (scores > (_RATES[name] if binary else np.median(scores))).astype(int)
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
    known = result.valid.reshape(-1, 2).all(axis=1)
    chars = np.array([[len(p.chosen), len(p.rejected)] for p in pairs]).T
    return {
        "pairs": agreement.pairwise_accuracy(chosen, rejected, known).value,
        "pairs of similar length": agreement.length_matched_accuracy(chosen, rejected, *chars, known).value,
    }
