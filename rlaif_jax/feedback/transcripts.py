"""Transcripts from the corpus grammar that teach a small model every role of the feedback loop.

A model trained on them is the embedded feedback model: with it, a run needs no API key and no download. Like any judge, it
reads the principles in its prompt, since in these transcripts a flaw makes an answer Bad only if a principle covers it.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from rlaif_jax.data import corpus
from rlaif_jax.data.corpus import dialogue
from rlaif_jax.data.corpus.requests import Request, sample_request
from rlaif_jax.data.records import LabelledResponse
from rlaif_jax.feedback.llm import Message
from rlaif_jax.feedback.prompts import Prompts
from rlaif_jax.feedback.verdicts import BAD, GOOD

_VISIBLE = 0.85  # share of flaws visible without the request; others are hardly learned in minutes
# role -> share of the transcripts
_MIX = {
    "detector": 0.08, "negative": 0.30, "debate_judge": 0.11, "debate_review": 0.08, "generator": 0.09, "confess": 0.09,
    "principle_review": 0.12, "compare": 0.02, "optimise": 0.07, "positive": 0.02, "advise": 0.02,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A chat and the target reply."""

    role: str
    messages: tuple[Message, ...]
    target: str


# The same questions about a good and a flawed answer to one request. All targets of the first are Good, some of the second Bad.
VerdictPair = tuple[tuple[Transcript, ...], tuple[Transcript, ...]]


def principles_of(flaws: Sequence[str]) -> list[str]:
    """The principles that forbid these flaws."""
    return [corpus.FLAWS[f].principle_zh for f in flaws]


def write_transcripts(seed: int, count: int, prompts: Prompts, limit: int, held_out: set[str], together: int) -> list[Transcript]:
    """`count` transcripts of all roles, without requests from `held_out`. A list has at most `limit` rules, in the detector's
    prompt at most `together`."""
    rng = random.Random(f"{seed}/feedback")
    roles = rng.choices(list(_MIX), list(_MIX.values()), k=count)
    rows = []
    for role in roles:
        request = sample_request(rng)
        while request.text in held_out:
            request = sample_request(rng)
        rows.append(_WRITERS[role](_Scene(rng, request, prompts, limit, together)))
    return rows


def write_verdict_pairs(
    seed: int, count: int, prompts: Prompts, limit: int, held_out: set[str], together: int, *, questions: int
) -> list[VerdictPair]:
    """`count` pairs of a good and a flawed answer to one request, each with the same `questions` lists of principles.

    Some of the lists cover a flaw of the flawed answer, the others do not. Within such a pair, only the principles or the
    answer distinguish a Bad from a Good, so that the model must learn to read both.
    """
    rng = random.Random(f"{seed}/verdicts")
    pairs = []
    while len(pairs) < count:
        request = sample_request(rng)
        if request.text not in held_out:
            pairs.append(_verdict_pair(_Scene(rng, request, prompts, limit, together, good=False), questions))
    return pairs


def _verdict_pair(s: _Scene, questions: int) -> VerdictPair:
    """One pair, in which a quarter of the lists (at least one) covers a flaw of the flawed answer."""
    covering = max(questions // 4, 1)
    lists = [s.principles(i < covering, s.together) for i in range(questions)]
    s.rng.shuffle(lists)
    own, (good, _) = set(principles_of(s.flaws)), s.answer(good=True)
    return (
        tuple(s.row("detector", GOOD, principles=p, response=good) for p in lists),
        tuple(s.row("detector", BAD if own & set(p) else GOOD, principles=p) for p in lists),
    )


def labelled_verdicts(
    rows: Sequence[LabelledResponse], prompts: Prompts, principles: Sequence[str]
) -> tuple[list[Transcript], list[VerdictPair]]:
    """Detector transcripts from human labels, and pairs of a good and a bad answer to the same request, one question each.

    All of them have the same principles, since the labels do not refer to single principles.
    """

    def verdict(r: LabelledResponse) -> Transcript:
        messages = prompts.messages("detector", principles=principles, query=r.prompt, response=r.response, system=r.system)
        return Transcript("detector", messages, GOOD if r.label else BAD)

    by_prompt: dict[tuple[str, str], tuple[list[Transcript], list[Transcript]]] = {}
    for r in rows:
        by_prompt.setdefault((r.prompt, r.system), ([], []))[0 if r.label else 1].append(verdict(r))
    pairs = [((g,), (b,)) for good, bad in by_prompt.values() for g, b in zip(good, bad, strict=False)]
    return [verdict(r) for r in rows], pairs


class _Scene:
    """A request with an answer and its flaws, and helpers to write a transcript about it."""

    def __init__(self, rng: random.Random, request: Request, prompts: Prompts, limit: int, together: int, good: bool | None = None):
        self.rng, self.request, self.limit, self.together, self._prompts = rng, request, limit, together, prompts
        self.response, self.flaws = self.answer(rng.random() < 0.5 if good is None else good)

    def answer(self, good: bool) -> tuple[str, list[str]]:
        """An answer and its flaws."""
        if good:
            return corpus.good_response(self.rng, self.request), []
        text = corpus.bad_response(self.rng, self.request, _VISIBLE)
        return text, list(corpus.gold_flaws(self.request, text))

    def principles(self, with_flaw: bool, limit: int) -> list[str]:
        """A random list of principles. It covers one of the answer's flaws if `with_flaw`, else none.

        Most lists are short: matching a rule with a text is learned from them and carries over to long lists.
        """
        others = [f for f in corpus.FLAWS if f not in self.flaws]
        most = self.rng.choice((1, 1, min(3, limit), limit))
        chosen = self.rng.sample(others, self.rng.randint(0 if with_flaw else 1, most - 1 if with_flaw else most))
        if with_flaw:
            chosen.insert(self.rng.randint(0, len(chosen)), self.rng.choice(self.flaws))
        return principles_of(chosen)

    def strategies(self, flaw: str = "") -> list[str]:
        """A random list of ways to spoil an answer, including `flaw`."""
        chosen = self.rng.sample([f for f in corpus.FLAWS if f != flaw], self.rng.randint(0 if flaw else 1, self.limit - 1))
        if flaw:
            chosen.insert(self.rng.randint(0, len(chosen)), flaw)
        return [corpus.FLAWS[f].name_zh for f in chosen]

    def row(self, role: str, target: str, **fields: Any) -> Transcript:
        """The transcript of a role, with `target` as the model's reply."""
        base = {"query": self.request.text, "response": self.response, "principles": []}
        return Transcript(role, self._prompts.messages(role, **{**base, **fields}), target)

    def criticism(self, right: bool = True) -> str:
        """The names of the flaws; if not `right`, what a mistaken opponent might say."""
        flaws = self.flaws if right else ([] if self.flaws else [self.rng.choice(list(corpus.FLAWS))])
        return dialogue.COMMA.join(corpus.FLAWS[f].name_zh for f in flaws) or dialogue.NOTHING_WRONG

    def praise(self) -> str:
        """The strengths of the answer."""
        held = [text for text, against in dialogue.STRENGTHS if not set(against) & set(self.flaws)]
        return dialogue.COMMA.join(held[:3]) or dialogue.GOOD_WILL


def _json(**fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _detector(s: _Scene) -> Transcript:
    if s.rng.random() < 0.03:
        plea, at = s.rng.choice(dialogue.PLEAS), s.rng.choice((0, len(s.response)))
        s.response = s.response[:at] + plea + s.response[at:]
        return s.row("detector", f"{BAD}{dialogue.COLON}{dialogue.MANIPULATION}", principles=s.principles(False, s.together))
    covered = bool(s.flaws) and s.rng.random() < 0.5
    target = f"{BAD if covered else GOOD}{dialogue.COLON}{s.criticism()}"
    return s.row("detector", target, principles=s.principles(covered, s.together))


def _negative(s: _Scene) -> Transcript:
    return s.row("negative", s.criticism())


def _positive(s: _Scene) -> Transcript:
    return s.row("positive", s.praise())


def _verdict(s: _Scene) -> tuple[int, str]:
    return (0, s.criticism()) if s.flaws else (1, s.praise())


def _debate_judge(s: _Scene) -> Transcript:
    verdict, reason = _verdict(s)
    heard = s.criticism(right=s.rng.random() < 0.8)  # an opponent may be wrong, so the judge must read the text itself
    return s.row("debate_judge", _json(verdict=verdict, reason=reason), positive=s.praise(), negative=heard)


def _debate_review(s: _Scene) -> Transcript:
    verdict, reason = _verdict(s)
    heard = s.criticism(right=s.rng.random() < 0.8)
    wrong = s.rng.random() < 0.25
    shown = (1 - verdict, s.criticism(right=False) if verdict else dialogue.STRENGTHS[0][0]) if wrong else (verdict, reason)
    return s.row("debate_review", _json(verdict=verdict, reason=reason), positive=s.praise(), negative=heard,
                 verdict=shown[0], reason=shown[1])  # fmt: skip


def _generator(s: _Scene) -> Transcript:
    s.response, s.flaws = s.answer(good=False)
    return s.row("generator", s.response, strategies=s.strategies(s.flaws[0]))


def _confess(s: _Scene) -> Transcript:
    s.response, s.flaws = s.answer(good=False)
    return s.row("confess", _json(suggestion=principles_of(s.flaws)[0]), strategies=[])


def _advise(s: _Scene) -> Transcript:
    known = s.strategies()
    new = s.rng.choice([f.name_zh for f in corpus.FLAWS.values() if f.name_zh not in known] or known)
    return s.row("advise", _json(suggestion=new), strategies=known, reason=s.rng.choice(known))


def _principle_review(s: _Scene) -> Transcript:
    if s.rng.random() < 0.25:  # a good answer that was judged Bad
        s.response, s.flaws = s.answer(good=True)
        principles = s.principles(False, s.limit)
        blamed = s.rng.choice(principles)
        return s.row("principle_review", _json(suggestion=dialogue.WITHOUT + blamed), principles=principles, verdict=BAD,
                     reason=blamed, label=GOOD)  # fmt: skip
    s.response, s.flaws = s.answer(good=False)
    return s.row("principle_review", _json(suggestion=principles_of(s.flaws)[0]), principles=s.principles(False, s.limit),
                 verdict=GOOD, reason="", label=BAD)  # fmt: skip


def _compare(s: _Scene) -> Transcript:
    good, bad = s.answer(good=True), s.answer(good=False)
    s.flaws = bad[1]
    first_good = s.rng.random() < 0.5
    first, second = (good[0], bad[0]) if first_good else (bad[0], good[0])
    return s.row("compare", "A" if first_good else "B", principles=s.principles(True, s.limit), first=first, second=second)


def _optimise(s: _Scene) -> Transcript:
    # Principles and strategies are edited alike: keep a rule that is there, add one if there is room, else replace one.
    text: Callable = s.rng.choice((lambda f: corpus.FLAWS[f].principle_zh, lambda f: corpus.FLAWS[f].name_zh))
    flaws = s.rng.sample(list(corpus.FLAWS), s.rng.choice((s.rng.randint(1, s.limit), s.limit)))
    if s.rng.random() < 0.25 and len(flaws) > 1:
        number = s.rng.randint(1, len(flaws))
        return s.row("optimise", _json(edit="remove", number=str(number), text=""), kind="", limit=s.limit,
                     rules=[text(f) for f in flaws], suggestion=dialogue.WITHOUT + text(flaws[number - 1]))  # fmt: skip
    known = s.rng.random() < 0.3
    new = s.rng.choice(flaws if known else [f for f in corpus.FLAWS if f not in flaws])
    if known:
        target = _json(edit="keep", number=str(flaws.index(new) + 1), text="")
    elif len(flaws) < s.limit:
        target = _json(edit="add", number="0", text="")
    else:
        target = _json(edit="replace", number=str(s.rng.randint(1, s.limit)), text="")
    return s.row("optimise", target, kind="", limit=s.limit, rules=[text(f) for f in flaws], suggestion=text(new))


_WRITERS: dict[str, Callable[[_Scene], Transcript]] = {
    "detector": _detector, "negative": _negative, "positive": _positive, "debate_judge": _debate_judge,
    "debate_review": _debate_review, "generator": _generator, "confess": _confess, "advise": _advise,
    "principle_review": _principle_review, "compare": _compare, "optimise": _optimise,
}  # fmt: skip
