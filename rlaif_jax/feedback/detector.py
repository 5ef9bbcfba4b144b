"""The principle-guided judge ("detector"): principles, a request and an answer in, P(Good) out."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from rlaif_jax.feedback.llm import LLM, LLMRequest
from rlaif_jax.feedback.prompts import Prompts
from rlaif_jax.feedback.structured import Answer, ReplyError, ask

GOOD, BAD = "Good", "Bad"
_VERDICT = re.compile(r"^\W*(good|bad)\b[\s*:：,，.。]*(.*)$", re.IGNORECASE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """p_good (B,) float32 in [0, 1], NaN where there is no verdict; reasons: what the judge said after it, if asked."""

    p_good: np.ndarray
    reasons: tuple[str, ...] = ()


def parse_verdict(text: str) -> dict[str, str]:
    """{"verdict": Good or Bad, "reason"} from a reply that begins with one of the words. Raises ReplyError."""
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


def soft_verdicts(
    llm: LLM, prompts: Prompts, principles: Sequence[str], items: Sequence[tuple[str, str]]
) -> Verdicts:
    """P(Good) / (P(Good) + P(Bad)) from the logits of the first token (arXiv 2408.15240): no decoding, no ties."""
    logprobs = llm.choice_logprobs(requests_for(prompts, principles, items), (GOOD, BAD))
    return Verdicts((1.0 / (1.0 + np.exp(logprobs[:, 1] - logprobs[:, 0]))).astype(np.float32))


def make_checklist(llm: LLM, prompts: Prompts) -> Callable[[Sequence[str], Sequence[tuple[str, str]]], Verdicts]:
    """Each principle is asked by itself, softly; an answer is as good as on the principle that it keeps least.

    A rubric with veto (arXiv 2508.12790). A small judge overlooks in a long list what it sees when asked for it alone;
    it costs one prefill per principle. The reason is that principle. The game measures the same rows again and again with
    one principle changed: the last columns are remembered.
    """

    @functools.lru_cache(maxsize=64)
    def column(principle: str, items: tuple[tuple[str, str], ...]) -> np.ndarray:
        return soft_verdicts(llm, prompts, [principle], items).p_good

    def verdicts(principles: Sequence[str], items: Sequence[tuple[str, str]]) -> Verdicts:
        if not items:
            return Verdicts(np.zeros(0, np.float32))
        table = np.stack([column(p, tuple(items)) for p in principles], axis=1)
        worst = np.argmin(np.nan_to_num(table, nan=np.inf), axis=1)
        return Verdicts(np.min(table, axis=1), tuple(principles[i] for i in worst))  # one NaN in a row: no verdict

    return verdicts


def spoken_verdicts(
    llm: LLM, prompts: Prompts, principles: Sequence[str], items: Sequence[tuple[str, str]], *, votes: int = 1,
    temperature: float = 0.0,
) -> Verdicts:  # fmt: skip
    """The share of `votes` replies that say Good, over those that can be read; the reason of the first."""
    requests = [
        r for v in range(votes) for r in requests_for(prompts, principles, items, temperature=temperature, seed=v)
    ]
    answers: list[Answer] = ask(llm, requests, parse_verdict)
    values = [np.nan if a.value is None else float(a.value["verdict"] == GOOD) for a in answers]
    table = np.array(values, np.float32).reshape(votes, len(items))
    known = np.sum(~np.isnan(table), axis=0)
    share = np.divide(np.nansum(table, axis=0), known, out=np.full(len(items), np.nan, np.float32), where=known > 0)
    reasons = tuple(a.value["reason"] if a.value else "" for a in answers[: len(items)])
    return Verdicts(share, reasons)
