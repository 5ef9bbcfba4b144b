"""The judge as a reward. The reward of a text is P(Good), a verdict, a share of votes, or a share of wins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.defence import bare, plainest
from rlaif_jax.feedback.llm import Failure, row_failures, worst
from rlaif_jax.feedback.verdicts import Item, Verdicts, judge_verdicts, require_answers
from rlaif_jax.rewards.base import RewardFn, RewardResult, Sample


def _as_reward(judge: Callable[[list[Item]], Verdicts]) -> RewardFn:
    """P(Good) as a reward."""

    def reward(samples: Sequence[Sample]) -> RewardResult:
        verdicts = judge([Item(e.prompt, e.response, e.system) for e in samples])
        values, valid = verdicts.p_good, ~np.isnan(verdicts.p_good)
        kept = np.where(valid, values, 0.0).astype(np.float32)
        return RewardResult(kept, valid, {"judge": values}, problem=worst(verdicts.failures))

    return reward


def make_judge(
    agent: Agent, principles: Sequence[str], mode: str, *, votes: int = 3, temperature: float = 0.7, group: int = 0
) -> RewardFn:
    """The judge as a reward function. A failed or unreadable reply makes its row invalid, never zero.

    mode "pairwise" compares each answer with the next one of its group (`group` consecutive rows have the same prompt). It asks
    in both orders, so that a preference of the judge for a position cancels out.
    """
    if mode == "pairwise":
        return _lowest_wins(agent, _pairwise(agent, principles, group), group)
    judge = judge_verdicts(agent, mode, votes, temperature)
    return _as_reward(lambda items: judge(principles, items))


def _lowest_wins(agent: Agent, compare: RewardFn, group: int) -> RewardFn:
    """The share of wins. A group with an answer that the strict defence shortens is compared again with the shorter one, and that
    answer gets its lower share."""

    def reward(samples: Sequence[Sample]) -> RewardResult:
        found = compare(samples)
        rests = [plainest(agent, e.prompt, e.response) for e in samples]
        shorter = np.array([rest != bare(agent, e.prompt, e.response) for rest, e in zip(rests, samples, strict=True)], bool)
        rows = np.flatnonzero(np.repeat(shorter.reshape(-1, group).any(axis=1), group))
        if not len(rows):
            return found
        again = compare([dataclasses.replace(samples[i], response=rests[i]) for i in rows.tolist()])
        values, valid = found.values.copy(), found.valid.copy()
        values[rows] = np.where(shorter[rows], np.minimum(values[rows], again.values), again.values)
        valid[rows] &= again.valid
        components, problem = found.components | {"judge": values}, worst([found.problem, again.problem])
        return dataclasses.replace(found, values=values, valid=valid, components=components, problem=problem)

    return reward


def insisting(judge: RewardFn) -> RewardFn:
    """The reward, with a UserError where questions to the judge stay unanswered."""

    def reward(samples: Sequence[Sample]) -> RewardResult:
        result = judge(samples)
        require_answers(result.problem)
        return result

    return reward


def _pairwise(agent: Agent, principles: Sequence[str], group: int) -> RewardFn:
    def reward(samples: Sequence[Sample]) -> RewardResult:
        if group < 2 or len(samples) % group:
            raise UserError(f"pairwise judging needs groups of 2 or more answers; found {len(samples)} in groups of {group}")
        starts = range(0, len(samples), group)
        # In a group of two, the second answer's match is the first one's.
        pairs = [(s + k, s + (k + 1) % group) for s in starts for k in range(group if group > 2 else 1)]
        texts = [bare(agent, e.prompt, e.response) for e in samples]
        matches = [(samples[i], texts[i], texts[rival]) for i, rival in pairs]
        both = _prefers_first(agent, principles, matches + [(e, b, a) for e, a, b in matches])
        first, second = both[0][: len(matches)], both[0][len(matches) :]
        total, count, swaps = np.zeros(len(samples)), np.zeros(len(samples)), np.zeros(len(samples), np.float32)
        for (i, rival), a, b in zip(pairs, first, second, strict=True):
            win = (a + 1.0 - b) / 2.0
            if not np.isnan(win):
                total[i], count[i] = total[i] + win, count[i] + 1
                total[rival], count[rival] = total[rival] + 1.0 - win, count[rival] + 1
                swaps[i] = abs(a + b - 1.0)  # 0: the same answer wins in both positions
                if group == 2:
                    swaps[rival] = swaps[i]
        values = np.divide(total, count, out=np.zeros_like(total), where=count > 0).astype(np.float32)
        return RewardResult(values, count > 0, {"judge": values, "place_bias": swaps}, None, worst(both[1]))

    return reward


def first_wins(agent: Agent, principles: Sequence[str], triples: Sequence[tuple[Sample, str, str]]) -> np.ndarray:
    """For each (sample whose request both answer, a, b), whether a is the better answer: 1, 0, 0.5 where the two orders disagree,
    NaN without a verdict. Every pair is asked in both orders, without pleas; equal answers are a tie, unasked. UserError where
    questions stay unanswered."""
    clean = [(e, bare(agent, e.prompt, a), bare(agent, e.prompt, b)) for e, a, b in triples]
    asked = [i for i, (_, a, b) in enumerate(clean) if a != b]
    wins = np.full(len(clean), 0.5)
    if asked:
        matches = [clean[i] for i in asked]
        both, failures = _prefers_first(agent, principles, matches + [(e, b, a) for e, a, b in matches])
        require_answers(worst(failures))
        wins[asked] += (np.sign(both[: len(asked)] - 0.5) - np.sign(both[len(asked) :] - 0.5)) / 4
    return wins


def _prefers_first(
    agent: Agent, principles: Sequence[str], triples: Sequence[tuple[Sample, str, str]]
) -> tuple[np.ndarray, list[Failure | None]]:
    """P(first is better) of (sample with the request, first, second), NaN where the reply is invalid, and the cause."""
    requests = [
        agent.prompts.request("compare", max_tokens=4, principles=principles, query=e.prompt, system=e.system, first=a, second=b)
        for e, a, b in triples
    ]
    logprobs = agent.llm.choice_logprobs(requests, ("A", "B"))
    return 1.0 / (1.0 + np.exp(logprobs[:, 1] - logprobs[:, 0])), row_failures(agent.llm, logprobs)
