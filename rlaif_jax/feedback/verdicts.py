"""The principle-guided judge ("detector"): from principles, a request and an answer to P(Good)."""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.json_replies import ReplyError
from rlaif_jax.feedback.llm import LLM, LLMRequest
from rlaif_jax.feedback.prompts import Prompts
from rlaif_jax.language import LANGUAGES

GOOD, BAD = "Good", "Bad"
_REMEMBERED = 50_000  # verdicts that a checklist keeps in memory
_PAUSES = re.escape("".join(language.pauses for language in LANGUAGES.values()))
_VERDICT = re.compile(rf"^\W*(good|bad)\b[\s*{_PAUSES}]*(.*)$", re.IGNORECASE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """p_good: (B,) float32 in [0, 1], NaN for an invalid verdict. reasons: the judge's reasons, if the mode gives any."""

    p_good: np.ndarray
    reasons: tuple[str, ...] = ()


Judge = Callable[[Sequence[str], Sequence[tuple[str, str]]], Verdicts]  # (principles, items) -> verdicts


def parse_verdict(text: str) -> dict[str, str]:
    """{"verdict": Good or Bad, "reason"} from a reply that begins with Good or Bad. Else ReplyError."""
    found = _VERDICT.match(re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip())
    if not found:
        raise ReplyError("the reply must begin with Good or Bad")
    return {"verdict": found.group(1).capitalize(), "reason": found.group(2).strip()}


def requests_for(
    prompts: Prompts, principles: Sequence[str], items: Sequence[tuple[str, str]], *, max_tokens: int = 64,
    temperature: float = 0.0, seed: int = 0,
) -> list[LLMRequest]:  # fmt: skip
    """One detector request per (query, response)."""
    return [
        prompts.request("detector", max_tokens=max_tokens, temperature=temperature, seed=seed,
                        principles=principles, query=query, response=response)
        for query, response in items
    ]  # fmt: skip


def soft_verdicts(agent: Agent, principles: Sequence[str], items: Sequence[tuple[str, str]]) -> Verdicts:
    """P(Good) / (P(Good) + P(Bad)) from the logits of the first token (arXiv 2408.15240). No decoding, and no ties."""
    return Verdicts(_p_good(agent.llm, requests_for(agent.prompts, principles, items)))


def _p_good(llm: LLM, requests: Sequence[LLMRequest]) -> np.ndarray:
    logprobs = llm.choice_logprobs(requests, (GOOD, BAD))
    return (1.0 / (1.0 + np.exp(logprobs[:, 1] - logprobs[:, 0]))).astype(np.float32)


def make_checklist(agent: Agent) -> Judge:
    """Scores each principle separately as P(Good) and returns the minimum: a rubric with vetoes (arXiv 2508.12790).

    A small judge overlooks a flaw in a long list of principles that it finds when asked about one principle alone. Questions
    about one answer are adjacent, so that a model on the mesh reads the answer once for all of them. Verdicts are cached, since
    the principle game judges the same answers repeatedly with one principle changed.
    """
    known: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def verdicts(principles: Sequence[str], items: Sequence[tuple[str, str]]) -> Verdicts:
        if not items:
            return Verdicts(np.zeros(0, np.float32))
        keys = [(p, *item) for item in items for p in principles]
        asked = list(dict.fromkeys(key for key in keys if key not in known))
        requests = [r for p, *item in asked for r in requests_for(agent.prompts, [p], [tuple(item)])]
        found = known | dict(zip(asked, _p_good(agent.llm, requests).tolist(), strict=True))
        table = np.array([found[key] for key in keys], np.float32).reshape(len(items), -1)
        known.update((key, found[key]) for key in asked if not np.isnan(found[key]))  # failed questions are not cached
        while len(known) > _REMEMBERED:
            known.popitem(last=False)
        worst = np.argmin(np.nan_to_num(table, nan=np.inf), axis=1)
        return Verdicts(np.min(table, axis=1), tuple(principles[i] for i in worst))  # invalid if any principle's verdict is

    return verdicts


def spoken_verdicts(
    agent: Agent, principles: Sequence[str], items: Sequence[tuple[str, str]], *, votes: int = 1, temperature: float = 0.0
) -> Verdicts:
    """The share of Good among the valid ones of `votes` replies, and the first reply's reason."""
    prompts = agent.prompts
    requests = [r for v in range(votes) for r in requests_for(prompts, principles, items, temperature=temperature, seed=v)]
    answers = agent.ask(requests, parse_verdict)
    values = [np.nan if a.value is None else float(a.value["verdict"] == GOOD) for a in answers]
    table = np.array(values, np.float32).reshape(votes, len(items))
    known = np.sum(~np.isnan(table), axis=0)
    share = np.divide(np.nansum(table, axis=0), known, out=np.full(len(items), np.nan, np.float32), where=known > 0)
    reasons = tuple(a.value["reason"] if a.value else "" for a in answers[: len(items)])
    return Verdicts(share, reasons)


def judge_verdicts(agent: Agent, mode: str, votes: int, temperature: float) -> Judge:
    """(principles, items) -> verdicts, in a mode that rates one answer at a time: soft, checklist, binary or k_vote."""
    if mode == "checklist":
        return make_checklist(agent)
    if mode == "soft":
        return lambda principles, items: soft_verdicts(agent, principles, items)
    if mode not in ("binary", "k_vote"):
        raise UserError(f"the judge mode {mode!r} does not judge single answers; expected soft, checklist, binary or k_vote")
    votes, temperature = (votes, temperature) if mode == "k_vote" else (1, 0.0)
    return lambda principles, items: spoken_verdicts(agent, principles, items, votes=votes, temperature=temperature)
