"""The debate on an answer: a positive and a negative agent, a judge, and a reflecting agent that gives the final verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.json_replies import parse_json

_NAMES = {"debate_judge": "judge", "debate_review": "reflect"}  # names of the roles in `Debate.problem`
_SCHEMA = {"verdict": (0, 1), "reason": str}


@dataclasses.dataclass(frozen=True)
class Debate:
    """The record of one debate.

    Attributes:
      query, response: the answer that is debated.
      positive, negative: the statements of the two sides.
      verdict, reason: the judge's verdict, 0 or 1; None if its reply is invalid.
      final, final_reason: the reflecting agent's verdict; None if its reply or the judge's is invalid.
      problem: why `final` is None.
    """

    query: str
    response: str
    positive: str = ""
    negative: str = ""
    verdict: int | None = None
    reason: str = ""
    final: int | None = None
    final_reason: str = ""
    problem: str = ""

    @property
    def agreed(self) -> bool:
        """Whether the reflecting agent gave the judge's verdict."""
        return self.final is not None and self.final == self.verdict


def debate(agent: Agent, items: Sequence[tuple[str, str]], max_tokens: int = 256) -> list[Debate]:
    """Debates every (query, response). Each of the four rounds is one batch of requests."""
    base = [{"query": q, "response": r} for q, r in items]
    sides = {}
    for role in ("positive", "negative"):
        replies = agent.llm.complete([agent.prompts.request(role, max_tokens=max_tokens, **f) for f in base])
        sides[role] = replies
    said = [
        f | {"positive": p.text, "negative": n.text}
        for f, p, n in zip(base, sides["positive"], sides["negative"], strict=True)
    ]
    problems = [p.failure or n.failure for p, n in zip(sides["positive"], sides["negative"], strict=True)]
    records = [
        Debate(**f, problem=f"{problem.kind}: {problem.detail}" if problem else "")
        for f, problem in zip(said, problems, strict=True)
    ]
    records = _decide(agent, "debate_judge", records, max_tokens)
    return _decide(agent, "debate_review", records, max_tokens)


def _decide(agent: Agent, role: str, records: list[Debate], max_tokens: int) -> list[Debate]:
    """Adds the verdict of `role` (judge or reflecting agent) to the records without a problem so far."""
    open_ones = [i for i, r in enumerate(records) if not r.problem]
    requests = []
    for i in open_ones:
        r = records[i]
        fields = {"query": r.query, "response": r.response, "positive": r.positive, "negative": r.negative}
        fields |= {"verdict": r.verdict, "reason": r.reason} if role == "debate_review" else {}
        requests.append(agent.prompts.request(role, max_tokens=max_tokens, **fields))
    answers = agent.ask(requests, lambda text: parse_json(text, _SCHEMA))
    records = list(records)
    for i, answer in zip(open_ones, answers, strict=True):
        if answer.value is None:
            records[i] = dataclasses.replace(records[i], problem=f"{_NAMES[role]}: {answer.problem}")
        elif role == "debate_judge":
            records[i] = dataclasses.replace(records[i], **answer.value)
        else:
            final = {"final": answer.value["verdict"], "final_reason": answer.value["reason"]}
            records[i] = dataclasses.replace(records[i], **final)
    return records
