"""The principle-guided judge ("detector"): from principles, a request and an answer to P(Good)."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.defence import versions
from rlaif_jax.feedback.json_replies import ReplyError, answer_in, plain
from rlaif_jax.feedback.llm import LLM, Failure, LLMRequest, row_failures, worst
from rlaif_jax.feedback.prompts import Prompts
from rlaif_jax.language import LANGUAGES

GOOD, BAD = "Good", "Bad"
_REMEMBERED = 50_000  # verdicts that a checklist keeps in memory
_LABELS = "|".join(re.escape(label) for language in LANGUAGES.values() for label in language.verdict_labels)
_LABEL = rf"(?:{_LABELS})[\s*_\"']{{0,9}}:[\s*_\"']{{0,9}}"  # "Verdict: ", "**Verdict**: "
_WORD = r"(?P<verdict>good|bad)(?![a-z0-9_\u00c0-\u024f]|['’-][a-z])"  # no longer word; a Chinese character may follow
_VERDICT = re.compile(rf"\A[\W_]{{0,40}}(?:{_LABEL})?{_WORD}", re.IGNORECASE)
_ASKED = re.compile(r"\A[^\w:.]{0,3}\?")  # "Good?"
# A second verdict beside the first one, without a pause between them: "Good or Bad", "Good/Bad".
_BESIDE = re.compile(rf"\A[^:.\n]{{0,10}}?(?<![a-z]){_WORD}", re.IGNORECASE)
# A verdict on its own: a line, a sentence, or after a label.
_STATED = re.compile(rf"(?:(?:\A|[\n.!?])[\s*_#>-]{{0,9}}|(?<![a-z]){_LABEL}){_WORD}[*_\s]{{0,9}}(?=[\n.!?]|\Z)", re.IGNORECASE)
_QUOTED = re.compile(r"[“\"‘⟦][^”\"’⟧\n]{0,80}[”\"’⟧]")
_WORDS = {word: verdict for language in LANGUAGES.values() for verdict, words in language.verdict_words.items() for word in words}
_ONLY_A_WORD = re.compile(rf"\A[\W_]{{0,40}}(?:{_LABEL})?(?P<word>{'|'.join(_WORDS)})(?:[^\w?]|_){{0,40}}\Z", re.IGNORECASE)


class Item(NamedTuple):
    """An answer to judge: the request, the answer, and the system turn that the author had."""

    query: str
    response: str
    system: str = ""

    def pair(self) -> tuple[str, ...]:
        """(query, response), and the system turn only if there is one: a judge of one's own may know no third."""
        return self if self.system else (self.query, self.response)


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """Verdicts on B answers.

    Attributes:
      p_good: (B,) float32 in [0, 1], NaN for an invalid verdict.
      reasons: the judge's reasons, if the mode gives any.
      failures: why a verdict is invalid, None for the others; empty if the judge does not say.
    """

    p_good: np.ndarray
    reasons: tuple[str, ...] = ()
    failures: tuple[Failure | None, ...] = ()


Items = Sequence[tuple[str, ...]]  # each an Item, or (query, response)
Judge = Callable[[Sequence[str], Items], Verdicts]  # (principles, items) -> verdicts


def says_good(p_good: np.ndarray | float) -> np.ndarray | bool:
    """Whether a verdict means Good: P(Good) above one half. A tie of votes means Bad, here and everywhere."""
    return p_good > 0.5


def parse_verdict(text: str) -> dict[str, str]:
    """{"verdict": Good or Bad, "reason"} from a reply that begins with Good or Bad, also after a label ("Verdict: Bad").

    ReplyError for all other replies, and for one that states both verdicts.
    """
    said = answer_in(text)
    body = plain(said)
    if alone := _ONLY_A_WORD.match(body):
        return {"verdict": _WORDS[alone["word"].lower()], "reason": ""}
    found = _VERDICT.match(body)
    if not found:
        raise ReplyError("the reply must begin with Good or Bad")
    verdict, rest = found["verdict"].capitalize(), body[found.end("verdict") :]
    named = [_BESIDE.match(rest), *_STATED.finditer(_QUOTED.sub("", rest))]
    if _ASKED.match(rest) or {m["verdict"].capitalize() for m in named if m} - {verdict}:
        raise ReplyError("the reply names both verdicts, or asks which one is right; it must state one")
    return {"verdict": verdict, "reason": _reason(said[found.end("verdict") :])}


def _reason(text: str) -> str:
    """The text after a verdict, without the marks between them; an opening bracket or quote is part of the reason."""
    starts = (i for i, c in enumerate(text) if unicodedata.category(c)[0] in "LN" or unicodedata.category(c) in ("Ps", "Pi"))
    return text[next(starts, len(text)) :].strip()


def requests_for(
    prompts: Prompts, principles: Sequence[str], items: Items, *, max_tokens: int = 64, temperature: float = 0.0, seed: int = 0
) -> list[LLMRequest]:
    """One detector request per item."""
    return [
        prompts.request("detector", max_tokens=max_tokens, temperature=temperature, seed=seed,
                        principles=principles, **Item(*item)._asdict())
        for item in items
    ]  # fmt: skip


def soft_verdicts(agent: Agent, principles: Sequence[str], items: Items) -> Verdicts:
    """P(Good) / (P(Good) + P(Bad)) from the logits of the first token (arXiv 2408.15240). No decoding, and no ties."""
    values, failures = _p_good(agent.llm, requests_for(agent.prompts, principles, items))
    return Verdicts(values, failures=tuple(failures))


def _p_good(llm: LLM, requests: Sequence[LLMRequest]) -> tuple[np.ndarray, list[Failure | None]]:
    logprobs = llm.choice_logprobs(requests, (GOOD, BAD))
    return (1.0 / (1.0 + np.exp(logprobs[:, 1] - logprobs[:, 0]))).astype(np.float32), row_failures(llm, logprobs)


def make_checklist(agent: Agent) -> Judge:
    """Scores each principle separately as P(Good) and returns the minimum: a rubric with vetoes (arXiv 2508.12790).

    A small judge overlooks a flaw in a long list of principles that it finds when asked about one principle alone. Questions
    about one answer are adjacent, so that a model on the mesh reads the answer once for all of them. Verdicts are cached, since
    the principle game judges the same answers repeatedly with one principle changed.
    """
    known: OrderedDict[tuple[str, Item], float] = OrderedDict()

    def verdicts(principles: Sequence[str], items: Items) -> Verdicts:
        if not items:
            return Verdicts(np.zeros(0, np.float32))
        keys = [(p, Item(*item)) for item in items for p in principles]
        asked = list(dict.fromkeys(key for key in keys if key not in known))
        requests = [r for p, item in asked for r in requests_for(agent.prompts, [p], [item])]
        values, failures = _p_good(agent.llm, requests)
        found, failed = known | dict(zip(asked, values.tolist(), strict=True)), dict(zip(asked, failures, strict=True))
        table = np.array([found[key] for key in keys], np.float32).reshape(len(items), -1)
        causes = tuple(worst([failed.get((p, Item(*item))) for p in principles]) for item in items)
        known.update((key, found[key]) for key in asked if not np.isnan(found[key]))  # failed questions are not cached
        while len(known) > _REMEMBERED:
            known.popitem(last=False)
        lowest = np.argmin(np.nan_to_num(table, nan=np.inf), axis=1)
        # invalid if any principle's verdict is
        return Verdicts(np.min(table, axis=1), tuple(principles[i] for i in lowest), causes)

    return verdicts


def spoken_verdicts(
    agent: Agent, principles: Sequence[str], items: Items, *, votes: int = 1, temperature: float = 0.0
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
    causes = [worst([a.failure for a in answers[i :: len(items)]]) if np.isnan(share[i]) else None for i in range(len(items))]
    return Verdicts(share, reasons, tuple(causes))


def require_answers(failure: Failure | None) -> None:
    """UserError with the cause if it is a failure that left a question unanswered."""
    if failure is not None and failure.unanswered:
        raise UserError(f"the judge did not answer: {failure}. What was answered is stored; start the same command again to go on")


def judge_verdicts(agent: Agent, mode: str, votes: int, temperature: float) -> Judge:
    """(principles, items) -> verdicts, in a mode that rates one answer at a time: soft, checklist, binary or k_vote.

    An answer that argues with the judge gets the lower verdict of two (`feedback/defence.py`).
    """
    if mode == "checklist":
        return _lowest(agent, make_checklist(agent))
    if mode == "soft":
        return _lowest(agent, lambda principles, items: soft_verdicts(agent, principles, items))
    if mode not in ("binary", "k_vote"):
        raise UserError(f"the judge mode {mode!r} does not judge single answers; expected soft, checklist, binary or k_vote")
    votes, temperature = (votes, temperature) if mode == "k_vote" else (1, 0.0)
    return _lowest(
        agent, lambda principles, items: spoken_verdicts(agent, principles, items, votes=votes, temperature=temperature)
    )


def _lowest(agent: Agent, judge: Judge) -> Judge:
    """The judge, asked about every version of an answer that it should see; the lowest verdict counts, 0 if there is no version."""

    def verdicts(principles: Sequence[str], items: Items) -> Verdicts:
        whole = [Item(*item) for item in items]
        texts, places = versions(agent, [item[:2] for item in whole])
        if not texts:
            return Verdicts(np.zeros(len(whole), np.float32))
        found = judge(principles, [whole[i]._replace(response=text) for i, text in texts])
        p = found.p_good
        lowest = [min(own, key=lambda place: -1.0 if np.isnan(p[place]) else p[place], default=None) for own in places]
        return Verdicts(
            np.array([0.0 if place is None else p[place] for place in lowest], np.float32),
            tuple("" if place is None else found.reasons[place] for place in lowest) if found.reasons else (),
            tuple(None if place is None else found.failures[place] for place in lowest) if found.failures else (),
        )

    return verdicts
