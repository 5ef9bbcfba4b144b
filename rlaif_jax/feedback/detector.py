"""The principle-guided judge ("detector"): principles, a request and an answer in, P(Good) out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

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
