"""The debate on an answer: a positive and a negative agent, a judge, and a reflecting agent that gives the final verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.defence import versions
from rlaif_jax.feedback.json_replies import parse_json
from rlaif_jax.feedback.llm import Failure, LLMReply
from rlaif_jax.feedback.thinking import PROBLEMS, said
from rlaif_jax.feedback.verdicts import Item, Items

# names of the roles in `Debate.problem`
_NAMES = {"positive": "positive side", "negative": "negative side", "debate_judge": "judge", "debate_review": "reflect"}
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
      system: the system turn that the answer's author had.
      cause: the kind of the failure behind `problem` (see `llm.Failure`).
      unanswered: whether that failure says nothing about the answer, such as a server that is down; it may be debated later.
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
    system: str = ""
    cause: str = ""
    unanswered: bool = False

    @property
    def agreed(self) -> bool:
        """Whether the reflecting agent gave the judge's verdict."""
        return self.final is not None and self.final == self.verdict


def debate(agent: Agent, items: Items, max_tokens: int = 256, principles: Sequence[str] = ()) -> list[Debate]:
    """Debates every item. Each of the four rounds is one batch of requests.

    An answer that argues with the judge gets the lower verdict of two debates (`feedback/defence.py`).

    `principles`: the standard of the debate; empty: the request alone.
    """
    whole = [Item(*item) for item in items]
    texts, places = versions(agent, [item[:2] for item in whole])
    found = _debated(agent, [whole[i]._replace(response=text) for i, text in texts], max_tokens, principles) if texts else []
    records = []
    for item, own in zip(whole, places, strict=True):
        lowest = min((found[place] for place in own), key=lambda d: -1 if d.final is None else d.final, default=None)
        lowest = Debate(*item[:2], verdict=0, final=0, system=item.system) if lowest is None else lowest
        records.append(dataclasses.replace(lowest, response=item.response))
    return records


def _debated(agent: Agent, items: Sequence[Item], max_tokens: int, principles: Sequence[str]) -> list[Debate]:
    records = [Debate(query, response, system=system) for query, response, system in items]
    for role in ("positive", "negative"):
        open_ones = [i for i, r in enumerate(records) if not r.problem]
        fields = [_fields(records[i], principles) for i in open_ones]
        replies = agent.llm.complete([agent.prompts.request(role, max_tokens=max_tokens, **f) for f in fields])
        for i, reply in zip(open_ones, replies, strict=True):
            records[i] = _with_statement(records[i], role, reply)
    for role in ("debate_judge", "debate_review"):
        records = _decide(agent, role, records, max_tokens, principles)
    return records


def _fields(r: Debate, principles: Sequence[str]) -> dict[str, Any]:
    return {"query": r.query, "response": r.response, "system": r.system, "principles": list(principles)}


def _with_statement(r: Debate, role: str, reply: LLMReply) -> Debate:
    """The record with what one side said. A statement that the token limit cut off counts as far as it goes."""
    heard = said(reply)
    if reply.failure is not None:
        return _failed(r, role, reply.failure)
    if not heard.text:
        return _failed(r, role, Failure(heard.cause, PROBLEMS[heard.cause]))
    return dataclasses.replace(r, **{role: heard.text})


def _failed(r: Debate, role: str, failure: Failure) -> Debate:
    return dataclasses.replace(r, problem=f"{_NAMES[role]}: {failure}", cause=failure.kind, unanswered=failure.unanswered)


def _decide(agent: Agent, role: str, records: list[Debate], max_tokens: int, principles: Sequence[str]) -> list[Debate]:
    """Adds the verdict of `role` (judge or reflecting agent) to the records without a problem so far."""
    open_ones = [i for i, r in enumerate(records) if not r.problem]
    requests = []
    for i in open_ones:
        r = records[i]
        fields = _fields(r, principles) | {"positive": r.positive, "negative": r.negative}
        fields |= {"verdict": r.verdict, "reason": r.reason} if role == "debate_review" else {}
        requests.append(agent.prompts.request(role, max_tokens=max_tokens, **fields))
    answers = agent.ask(requests, lambda text: parse_json(text, _SCHEMA))
    records = list(records)
    for i, answer in zip(open_ones, answers, strict=True):
        if answer.value is None:
            records[i] = _failed(records[i], role, answer.failure)
        elif role == "debate_judge":
            records[i] = dataclasses.replace(records[i], **answer.value)
        else:
            final = {"final": answer.value["verdict"], "final_reason": answer.value["reason"]}
            records[i] = dataclasses.replace(records[i], **final)
    return records
