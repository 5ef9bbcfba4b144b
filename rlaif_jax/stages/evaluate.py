"""The evaluation stages: every system answers the same held-out prompts, every grader scores the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.progress import track

from rlaif_jax.config import RunConfig
from rlaif_jax.data import corpus, pipelines
from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt
from rlaif_jax.data.rows import prompt_rows
from rlaif_jax.evaluation import agreement
from rlaif_jax.evaluation.compare import GradedSample
from rlaif_jax.models import transformer
from rlaif_jax.rewards.base import RewardFn, RewardResult, Sample
from rlaif_jax.run.data import RunData
from rlaif_jax.run.folder import Run, write_json
from rlaif_jax.run.models import RunModels
from rlaif_jax.sampling.filters import traced
from rlaif_jax.sampling.sampler import make_sampler
from rlaif_jax.trainers.rollout import to_samples

SYSTEMS = {
    "base": "the weights that SFT started from", "sft": "after supervised fine-tuning",
    "best_of": "the best of several SFT answers by the reward model", "dpo": "after DPO on the reward model's pairs",
    "rl": "after RL against the reward model", "rl_judge": "after RL against the judge",
}  # fmt: skip


# Graders whose verdict is shown as a share of good answers, and the score above which an answer is good.
_RATES = {"grader": 0.0, "judge": 0.5}
_PAIRS = 500  # held-out pairs that every grader scores


def systems_of(cfg: RunConfig) -> list[str]:
    """The names of the systems that a run compares."""
    left_out = {
        "sft": cfg.sft is None, "best_of": cfg.evaluation.best_of < 2, "dpo": cfg.dpo is None, "rl_judge": cfg.judge is None
    }  # fmt: skip
    return [name for name in SYSTEMS if not left_out.get(name, False)]


def run_evaluate(x: Run) -> Mapping[str, Any]:
    """Writes samples_<system>.json for every system, and graders.json: how far each grader can be trusted.

    Every system is graded by every grader: the reward model's policy by the judge, too, and the other way round.
    """
    systems = systems_of(x.cfg)
    x.require("reward", *(s for s in systems if s not in ("base", "best_of")), *(["grader"] if x.cfg.grader else []))
    data, models, cfg = RunData(x), RunModels(x), x.cfg.evaluation
    prompts = data.eval_prompts()
    graders = {"reward": models.reward("reward", cfg.batch_size)}
    if x.cfg.grader:
        graders["grader"] = models.reward("grader", cfg.batch_size)
    if x.cfg.judge:
        graders["judge"] = models.judge(1, x.cfg.judge.single_mode)
    answered = 0
    for name in systems:
        samples = answers(x, models, name, prompts, graders)
        answered = len(samples)
        write_json(x.folder("evaluate") / f"samples_{name}.json", [dataclasses.asdict(s) for s in samples])
    write_json(x.folder("evaluate") / "graders.json", _grader_quality(x, data, graders))
    return {"prompts": answered}


def answers(
    x: Run, models: RunModels, name: str, prompts: Sequence[Prompt], graders: Mapping[str, RewardFn]
) -> list[GradedSample]:
    """One answer per prompt, sampled or the best of several, scored; the same random numbers for every system."""
    cfg, samples = x.cfg.evaluation, []
    group = cfg.best_of if name == "best_of" else 1
    params = models.policy("sft" if name == "best_of" else name)
    sampler = make_sampler(
        models.config, transformer.logical_axes(models.config), x.place, group=group, max_tokens=cfg.sampling.max_tokens,
        pad_id=models.tokenizer.pad_id,
    )  # fmt: skip
    rows = prompt_rows(prompts, models.tokenizer, x.cfg.rl.max_prompt)
    batches = list(pipelines.eval_batches(rows, cfg.batch_size))
    sampling = traced(cfg.sampling, models.tokenizer.eos_ids)
    for number, batch in enumerate(track(batches, f"evaluate {name}", console=x.console, transient=True)):
        decoded = sampler(params, batch["tokens"], batch["segment_ids"], x.cfg.seed + 11, number, sampling)
        records = [prompts[int(r)] for r in batch["row"]]
        answered, host = to_samples(decoded, records, group, models.tokenizer)
        chosen = best_of_groups(graders["reward"](answered), group) if group > 1 else np.arange(len(records))
        answered, tokens = [answered[i] for i in chosen], host.mask[chosen].sum(axis=1)
        results = {grader: reward(answered) for grader, reward in graders.items()}
        for i in np.flatnonzero(batch["row_mask"]):
            scores = {g: float(r.values[i]) if r.valid[i] else None for g, r in results.items()}
            scores |= {g: float(scores[g] > threshold) for g, threshold in _RATES.items() if scores.get(g) is not None}
            scores = _gold(records[i], answered[i]) | scores
            samples.append(GradedSample(records[i].prompt, answered[i].response, int(tokens[i]), answered[i].finished, scores))
    return samples


def best_of_groups(result: RewardResult, group: int) -> np.ndarray:
    """(P,) the row of the highest reward of each group of rows; one without verdict is taken only where none has any."""
    values = np.where(result.valid, result.values, -np.inf).reshape(-1, group)
    return np.arange(len(values)) * group + np.argmax(values, axis=1)


def _gold(record: Prompt, sample: Sample) -> dict[str, float | None]:
    """Verdicts of the corpus's gold scorer, where the prompt comes from it."""
    if "occasion" not in record.meta:
        return {}
    request = corpus.Request.from_meta(record.meta)
    compliant = corpus.is_compliant(request, sample.response)
    excellent = sample.finished and corpus.is_excellent(request, sample.response)
    return {"excellent": float(excellent), "compliance": None if compliant is None else float(compliant)}


def _grader_quality(x: Run, data: RunData, graders: Mapping[str, RewardFn]) -> dict[str, dict[str, float]]:
    """Agreement of each grader with the held-out labels and pairs (rows that stand in training files left out)."""
    out: dict[str, dict[str, float]] = {}
    if not x.cfg.data.labelled.path and not x.cfg.data.grader_share:
        return out
    held_out: list[LabelledResponse] = data.labelled()[1]
    labels = np.array([r.label for r in held_out])
    pairs = data.held_out_pairs()[:_PAIRS]
    for name, reward in graders.items():
        result = reward([Sample(r.prompt, r.response, True, r.system) for r in held_out])
        scores, known = result.values[result.valid], labels[result.valid]
        # A Bradley-Terry score has no zero point of its own: its threshold is the median of the scores.
        binary = name == "judge" or getattr(x.cfg, name).loss == "binary"
        predicted = (scores > (_RATES[name] if binary else np.median(scores))).astype(int)
        out[name] = {
            "n": len(known), "auc": agreement.auc(scores, known), "accuracy": agreement.accuracy(predicted, known),
            "balanced_accuracy": agreement.balanced_accuracy(predicted, known),
            "kappa": agreement.cohen_kappa(predicted, known), **_pair_accuracy(reward, pairs),
        }  # fmt: skip
    return out


def _pair_accuracy(reward: RewardFn, pairs: Sequence[PreferencePair]) -> dict[str, float | None]:
    """How often the chosen answer of a pair scores higher: over all, and where length does not give it away."""
    sides = [Sample(p.prompt, text, True, p.system) for p in pairs for text in (p.chosen, p.rejected)]
    result = reward(sides)
    chosen, rejected = result.values.reshape(-1, 2).T
    known = result.valid.reshape(-1, 2).all(axis=1)
    chars = np.array([[len(p.chosen), len(p.rejected)] for p in pairs]).T
    return {
        "pairs": agreement.pairwise_accuracy(chosen, rejected, known).value,
        "pairs of similar length": agreement.length_matched_accuracy(chosen, rejected, *chars, known).value,
    }


