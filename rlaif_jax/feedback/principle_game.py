"""The principle game: before RL, it optimises the judge's principles S_D against a generator with strategies S_G.

    generator(S_G, query) -> flawed answer -> detector(S_D)
        caught -> advice      -> S_G is edited
        fooled -> confession  -> S_D is edited, if the gate accepts it
    detector(S_D) wrong on a labelled answer -> reflector -> S_D is edited, if the gate accepts it

After arXiv 2508.21476. The gate is an addition: an edit of S_D is accepted only if it raises balanced accuracy on labelled
validation rows. Every version is saved with its score, and the best accepted one is the result.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from rlaif_jax import state_files
from rlaif_jax.data.records import LabelledResponse, Prompt
from rlaif_jax.data.streams import stream
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.json_replies import Answer, Parse, parse_json
from rlaif_jax.feedback.llm import Failure, LLMRequest, worst
from rlaif_jax.feedback.principles import Edit, Versions, apply_edit
from rlaif_jax.feedback.thinking import said
from rlaif_jax.feedback.verdicts import BAD, GOOD, Item, Judge, says_good
from rlaif_jax.ranges import CountOrZero, Range, Temperature, Tokens, check_fields

Measure = Callable[[Sequence[str]], dict[str, float]]  # principles -> balanced_accuracy and other metrics on validation rows
_EDITS = ("keep", "add", "replace", "remove")
_MOST_AWAY = 0.1  # largest share of a round's requests that a model may leave unanswered


@dataclasses.dataclass(frozen=True)
class GameConfig:
    """The principle game, which optimises the judge's principles. The defaults are those of the paper (arXiv 2508.21476).

    Attributes:
      rounds: number of rounds.
      games: queries per round that the generator answers.
      reflections: largest number of misjudged labelled answers per round that lead to a suggestion.
      edits: edits sampled per suggestion; the gate keeps the best one. More edits help if the feedback model is small.
      limit: largest number of rules in a list.
      gate_rows: labelled validation rows on which the gate scores an edit; 0 = all.
      temperature: sampling temperature of suggestions and edits.
      reply_tokens: limit on a reply, in tokens.
    """

    rounds: Annotated[int, Range(1, 10_000)] = 5
    games: CountOrZero = 4
    reflections: CountOrZero = 4
    edits: Annotated[int, Range(1, 10_000)] = 1
    limit: Annotated[int, Range(1, 1000)] = 10
    gate_rows: CountOrZero = 0
    temperature: Temperature = 0.7
    reply_tokens: Tokens = 128

    def __post_init__(self):
        check_fields(self)
        if not self.games + self.reflections:
            raise UserError("judge.game: games and reflections are both 0; set at least one of them")


class PrincipleGame:
    """The game in one folder: S_D and S_G as versioned text files, and one JSON line per round. It resumes after the last round."""

    def __init__(
        self, agent: Agent, judge: Judge, measure: Measure, cfg: GameConfig, folder: Path, console: Console, *,
        queries: Sequence[Prompt | str], labelled: Sequence[LabelledResponse], seed: int,
    ):  # fmt: skip
        self._agent, self._judge, self._measure = agent, judge, measure
        self._cfg, self._console, self._seed = cfg, console, seed
        self._queries, self._labelled = [q if isinstance(q, Prompt) else Prompt(q) for q in queries], list(labelled)
        self.principles, self.strategies = Versions(folder / "principles"), Versions(folder / "strategies")
        self._rounds_file, self._log = folder / "rounds.jsonl", folder / "game.jsonl"
        self._failures: list[Failure | None] = []  # of the round's requests

    def play(self, principles: Sequence[str], strategies: Sequence[str]) -> list[dict[str, Any]]:
        """Plays the remaining rounds. Returns the metrics of the start and of every round."""
        rows = self._resume(principles, strategies)
        with Progress(console=self._console, transient=True, disable=not self._console.is_terminal) as progress:
            task = progress.add_task("judge: rounds", total=self._cfg.rounds, completed=len(rows) - 1)
            for number in range(len(rows), self._cfg.rounds + 1):
                rows.append(self._round(number))
                self._write(rows)
                progress.advance(task)
        return rows

    @property
    def current(self) -> list[str]:
        """The current principles: the last version that the gate accepted."""
        return self.principles.rules(self.principles.in_force()["version"])

    def _resume(self, principles, strategies) -> list[dict[str, Any]]:
        if self._rounds_file.exists():
            rows = self._read_rounds()
            self.principles.truncate(rows[-1]["principle_versions"])
            self.strategies.truncate(rows[-1]["strategy_versions"])
            return rows
        self.principles.truncate(0)
        self.strategies.truncate(0)
        self.strategies.add(strategies, None, "start", True)
        scores = self._measure(principles)
        if scores["balanced_accuracy"] is None:
            raise UserError("the gate of the principle game needs labelled answers of both kinds, good and bad; found one kind")
        self.principles.add(principles, scores["balanced_accuracy"], "start", True)
        rows = [self._row(0, scores, {"fooled": float("nan"), "accepted": 0, "rolled_back": 0, "kept": 0, "unusable": 0})]
        self._write(rows)
        return rows

    def _round(self, number: int) -> dict[str, Any]:
        rng = random.Random(f"{self._seed}/round/{number}")
        counts = {"fooled": float("nan"), "accepted": 0, "rolled_back": 0, "kept": 0, "unusable": 0}
        events, self._failures = [], []
        if self._cfg.games:
            played = self._play_games(rng, number)
            events += played
            counts["fooled"] = float(np.mean([e["fooled"] for e in played])) if played else float("nan")
        if self._cfg.reflections:
            events += self._reflect(rng)
        seen = set()  # equal suggestions are tried once per round
        for event in events:
            same = event["list"], event["suggestion"]
            repeated = event["suggestion"] and same in seen  # an empty one counts as unusable, not as repeated
            event["outcome"] = "repeated" if repeated else self._apply(event, rng)
            seen.add(same)
            if event["list"] == "principles" and event["outcome"] in counts:
                counts[event["outcome"]] += 1
        self._heed(_MOST_AWAY)
        with self._log.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"round": number, **e}, ensure_ascii=False) + "\n" for e in events)
        return self._row(number, self._measure(self.current), counts)

    def _play_games(self, rng: random.Random, number: int) -> list[dict[str, Any]]:
        """Generator against detector: one event with a suggestion per game whose verdict is valid."""
        strategies = self.strategies.rules(len(self.strategies.rows) - 1)
        queries = rng.sample(self._queries, min(self._cfg.games, len(self._queries)))
        requests = [
            self._agent.prompts.request(
                "generator", max_tokens=self._cfg.reply_tokens, temperature=1.0, seed=stream(self._seed, f"principles/{number}"),
                strategies=strategies, query=q.prompt, system=q.system)
            for q in queries
        ]  # fmt: skip
        replies = self._agent.llm.complete(requests)
        self._failures += [r.failure for r in replies]
        self._heed(0.99)
        answers = [said(r).text for r in replies]
        items = [Item(q.prompt, a, q.system) for q, a in zip(queries, answers, strict=True) if a]
        verdicts = self._judge(self.current, [item.pair() for item in items])
        events = []
        for i, (query, response, system) in enumerate(items):
            if np.isnan(verdicts.p_good[i]):
                continue
            fooled = bool(says_good(verdicts.p_good[i]))
            reason = verdicts.reasons[i] if verdicts.reasons else ""
            events.append({"list": "principles" if fooled else "strategies", "fooled": fooled, "query": query,
                           "response": response, "system": system, "reason": reason})  # fmt: skip
        fields = [{"strategies": strategies} | {name: e[name] for name in Item._fields} for e in events]
        roles = ["confess" if e["fooled"] else "advise" for e in events]
        extra = [{} if e["fooled"] else {"reason": e["reason"] or BAD} for e in events]
        self._suggest(events, roles, [f | x for f, x in zip(fields, extra, strict=True)], rng)
        return events

    def _reflect(self, rng: random.Random) -> list[dict[str, Any]]:
        """Labelled answers that the detector judges wrongly: one event with a suggestion for each."""
        drawn = rng.sample(self._labelled, min(8 * self._cfg.reflections, len(self._labelled)))
        verdicts = self._judge(self.current, [Item(r.prompt, r.response, r.system).pair() for r in drawn])
        reasons = verdicts.reasons or ("",) * len(drawn)
        wrong = [
            (row, GOOD if says_good(p) else BAD, reason) for row, p, reason in zip(drawn, verdicts.p_good, reasons, strict=True)
            if not np.isnan(p) and says_good(p) != bool(row.label)
        ][: self._cfg.reflections]  # fmt: skip
        events = [
            {"list": "principles", "query": r.prompt, "response": r.response, "verdict": verdict, "reason": reason}
            for r, verdict, reason in wrong
        ]
        fields = [
            {"principles": self.current, "query": r.prompt, "response": r.response, "system": r.system, "verdict": verdict,
             "label": GOOD if r.label else BAD, "reason": reason if verdict == BAD else ""}
            for r, verdict, reason in wrong
        ]  # fmt: skip
        self._suggest(events, ["principle_review"] * len(events), fields, rng)
        return events

    def _suggest(self, events, roles, fields, rng: random.Random) -> None:
        requests = [
            self._agent.prompts.request(
                role, max_tokens=self._cfg.reply_tokens, temperature=self._cfg.temperature, seed=rng.randrange(2**31), **f
            )
            for role, f in zip(roles, fields, strict=True)
        ]
        answers = self._ask(requests, lambda text: parse_json(text, {"suggestion": str}))
        for event, answer in zip(events, answers, strict=True):
            event["suggestion"] = answer.value["suggestion"] if answer.value else ""

    def _apply(self, event: dict[str, Any], rng: random.Random) -> str:
        """Lets the feedback model edit the list by a suggestion, and returns the outcome: "accepted", "rolled_back" (by the
        gate), "kept" (the model finds that the list says it already) or "unusable"."""
        principles = event["list"] == "principles"
        rules = self.current if principles else self.strategies.rules(len(self.strategies.rows) - 1)
        if not event["suggestion"]:
            return "unusable"
        candidates, keeps = self._edits(rules, event["suggestion"], event["list"], rng)
        if not candidates:
            return "kept" if keeps else "unusable"
        if not principles:
            self.strategies.add(candidates[0], None, event["suggestion"], True)
            return "accepted"
        scores = [self._measure(edited)["balanced_accuracy"] for edited in candidates]
        best = int(np.argmax(scores))
        accepted = scores[best] > self.principles.in_force()["score"]  # an edit without gain would only make the list longer
        self.principles.add(candidates[best], scores[best], event["suggestion"], accepted)
        return "accepted" if accepted else "rolled_back"

    def _edits(self, rules: Sequence[str], suggestion: str, kind: str, rng: random.Random) -> tuple[list[list[str]], bool]:
        """The different lists that the sampled edits for one suggestion give, and whether some edit keeps the list unchanged.

        `kind`: what the list holds, "principles" or "strategies".
        """
        called = self._agent.prompts.language.list_names[kind]
        requests = [
            self._agent.prompts.request(
                "optimise", max_tokens=self._cfg.reply_tokens, temperature=self._cfg.temperature, seed=rng.randrange(2**31),
                rules=rules, limit=self._cfg.limit, kind=called, suggestion=suggestion)
            for _ in range(self._cfg.edits)
        ]  # fmt: skip
        found: list[list[str]] = []
        keeps = False
        for answer in self._ask(requests, _parse_edit):
            if answer.value is None:
                continue
            keeps = keeps or answer.value["edit"] == "keep"
            wording = answer.value["text"] or suggestion  # empty: use the suggestion itself
            edited = apply_edit(rules, Edit(**answer.value | {"text": wording}), self._cfg.limit)
            if edited is not None and edited not in found:
                found.append(edited)
        return found, keeps

    def _ask(self, requests: Sequence[LLMRequest], parse: Parse) -> list[Answer]:
        answers = self._agent.ask(requests, parse)
        self._failures += [a.failure for a in answers]
        self._heed(0.99)
        return answers

    def _heed(self, most: float) -> None:
        """UserError if the model left more than this share of the round's requests unanswered: such a round does not count as
        played. A single request that is never answered does not stop the game."""
        away = [f for f in self._failures if f is not None and f.unanswered]
        if len(away) > max(most * len(self._failures), 1):
            raise UserError(
                f"the feedback model left {len(away)} of {len(self._failures)} requests of a round unanswered ({worst(away)}). "
                "Finished rounds are saved; run the same command to continue"
            )

    def _read_rounds(self) -> list[dict[str, Any]]:
        """The rows of the finished rounds. UserError that names the file if it is damaged."""
        rows = state_files.read_rows(self._rounds_file, whole=True)
        try:
            counts = [(row["principle_versions"], row["strategy_versions"]) for row in rows]
            if not rows or not all(type(n) is int and n > 0 for pair in counts for n in pair):
                raise ValueError("expected one row per round, with its numbers of versions")
            if counts[-1][0] > len(self.principles.rows) or counts[-1][1] > len(self.strategies.rows):
                raise ValueError("it counts more versions than versions.json has")
        except (ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error!s:.200}"
            raise UserError(f"{self._rounds_file} is damaged ({why}); move the folder of the stage away to begin again") from error
        return rows

    def _row(self, number: int, scores: dict[str, float], counts: dict[str, Any]) -> dict[str, Any]:
        sizes = {"principles": len(self.current), "strategies": len(self.strategies.rules(len(self.strategies.rows) - 1))}
        versions = {"principle_versions": len(self.principles.rows), "strategy_versions": len(self.strategies.rows)}
        return {"round": number, **scores, **counts, **sizes, **versions}

    def _write(self, rows: list[dict[str, Any]]) -> None:
        state_files.write_rows(self._rounds_file, map(state_files.sealed, rows))


def _parse_edit(text: str) -> dict[str, Any]:
    return parse_json(text, {"edit": _EDITS, "number": int, "text": str})
