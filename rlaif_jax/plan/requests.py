"""How many requests, tokens and how much money the feedback model of a config will take, per stage, before anything is sent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlaif_jax.config import RunConfig
from rlaif_jax.config.stages import CURATE, EVALUATE, PRINCIPLES, Stage, stages_of
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.curate import CurateConfig
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.verdicts import requests_for
from rlaif_jax.language import ZH, get_language
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run
from rlaif_jax.sharding import Placement
from rlaif_jax.stages.evaluate import systems_of

_TEMPLATE = 32  # tokens that a chat template adds to a message
_PAIRS = 500  # held-out pairs that the evaluation scores at most
_NOTHING: dict[str, Any] = {
    "principles": [], "strategies": [], "rules": [], "examples": [], "limit": 10, "query": "", "response": "", "system": "",
    "positive": "", "negative": "", "reason": "", "first": "", "second": "", "suggestion": "", "label": "", "kind": "",
    "verdict": 0,
}  # fmt: skip
_LONG = 256  # tokens of a prompt or an answer of the data, whose length a plan does not know


@dataclasses.dataclass(frozen=True)
class DataCounts:
    """Rows of the run's data: requests for RL and evaluation, labelled rows to reflect on, of the gate and of the test, and
    held-out pairs."""

    prompts: int
    eval_prompts: int
    gate: int
    labelled_test: int
    pairs_eval: int


@dataclasses.dataclass(frozen=True)
class StageRequests:
    """What one stage asks: requests (without repetitions of unreadable replies), and upper bounds of tokens and money."""

    stage: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float


@dataclasses.dataclass(frozen=True)
class _Ask:
    """A kind of request: how many, and the tokens of one. Arithmetic over all of them is `_sum`."""

    count: int
    prompt: int
    completion: int


def corpus_counts(cfg: RunConfig) -> DataCounts:
    """The rows of the bundled corpus in the sizes of this config."""
    corpus = cfg.data.corpus
    held_out = max(corpus.labelled // 5, 1)
    return DataCounts(corpus.rl_prompts, corpus.eval_prompts, held_out, held_out, max(corpus.pairs // 5, 1))


def data_counts(cfg: RunConfig, place: Placement) -> DataCounts:
    """The rows of the run's data; of the bundled corpus, which may not be written yet, by its sizes."""
    if not cfg.data.root:
        return corpus_counts(cfg)
    data = RunData(Run(cfg, Path(cfg.data.root), place, Console(quiet=True)))
    gate, test = data.game_rows()[1:] if cfg.judge is not None and data.has_labels else ([], [])
    pairs = data.held_out_pairs() if gate or test else []
    return DataCounts(sum(map(len, data.rl_prompts(1)[:2])), len(data.eval_prompts()), len(gate), len(test), len(pairs))


def estimate_requests(cfg: RunConfig, counts: DataCounts) -> list[StageRequests]:
    """The stages that ask the feedback model; empty for a config without one. Most tokens are bounds: one token per character of
    the prompt files, and the largest prompts and answers."""
    if cfg.feedback is None:
        return []
    asks = _Asks(cfg, counts)
    found = [(stage, asks.of(stage)) for stage in stages_of(cfg).values()]
    return [_sum(cfg, stage.name, items) for stage, items in found if items]


def _sum(cfg: RunConfig, name: str, items: list[_Ask]) -> StageRequests:
    prompt, completion = sum(a.count * a.prompt for a in items), sum(a.count * a.completion for a in items)
    http = cfg.feedback.http if cfg.feedback else None
    money = (prompt * http.price_prompt + completion * http.price_completion) / 1e6 if http else 0.0
    return StageRequests(name, sum(a.count for a in items), prompt, completion, money)


class _Asks:
    """The requests of each stage of one config."""

    def __init__(self, cfg: RunConfig, counts: DataCounts):
        self._cfg, self._counts = cfg, counts
        # "auto" detects the language of the data, which a plan does not read. Chinese is assumed then.
        language = ZH if cfg.language == "auto" else get_language(cfg.language)
        self._prompts = load_prompts(cfg.feedback.family(language))
        self._principles = read_rules(cfg.judge.principles, language) if cfg.judge else []

    def of(self, stage: Stage) -> list[_Ask]:
        """The requests of a stage; none for one that does not ask."""
        if stage is CURATE:
            return self._curate()
        if stage is PRINCIPLES:
            return self._game()
        if stage is EVALUATE:
            return self._evaluate()
        if stage.kind == "rl" and self._cfg.all_arms()[stage.name].judge:
            return self._arm(stage)
        return []

    def _curate(self) -> list[_Ask]:
        cfg, rl = self._cfg.curate, self._cfg.rl
        prompts = min(cfg.prompts or self._counts.prompts, self._counts.prompts)
        answers = prompts * cfg.candidates
        found = self._debated(answers, rl.max_prompt_tokens + cfg.max_tokens, cfg.reply_tokens)
        if cfg.source == "llm":
            shown = cfg.examples * (_LONG + _TEMPLATE)
            found.append(_Ask(answers, self._fixed("candidate") + rl.max_prompt_tokens + shown, cfg.max_tokens))
        return found

    def _debated(self, answers: int, text: int, reply: int) -> list[_Ask]:
        """The four requests of a debate on each answer; `text`: tokens of a request with its answer."""
        text += self._listed(self._principles)
        return [
            _Ask(2 * answers, self._fixed("positive") + text, reply),
            _Ask(answers, self._fixed("debate_judge") + text + 2 * reply, reply),
            _Ask(answers, self._fixed("debate_review") + text + 3 * reply, reply),
        ]

    def _game(self) -> list[_Ask]:
        game, counts = self._cfg.judge.game, self._counts
        events, gate = game.games + game.reflections, min(game.gate_rows or counts.gate, counts.gate)
        measured = gate * (1 + game.rounds * (1 + events * game.edits)) + 2 * counts.labelled_test
        judged = measured + game.rounds * (game.games + 8 * game.reflections)
        rules, reply = game.limit * 64, game.reply_tokens
        return [
            *self._judged(judged, 2 * _LONG, self._cfg.judge.single_mode),
            _Ask(game.rounds * game.games, self._fixed("generator") + rules + _LONG, reply),
            _Ask(game.rounds * events, self._fixed("principle_review") + rules + 2 * _LONG, reply),
            _Ask(game.rounds * events * game.edits, self._fixed("optimise") + rules + reply, reply),
        ]

    def _arm(self, stage: Stage) -> list[_Ask]:
        rl, judge = self._cfg.rl_of(stage.name), self._cfg.judge
        rows = rl.train.batch_size * rl.group_size
        held_out = -(-min(rl.eval_prompts, max(self._counts.prompts // 10, 1)) // rl.train.batch_size)
        every = rl.train.eval_every or rl.train.checkpoint_every
        answers = rows * (rl.train.steps * (1 + rl.max_resamples) + held_out * -(-rl.train.steps // every))
        text = rl.max_prompt_tokens + rl.sampling.max_tokens
        if judge.mode != "pairwise":
            return self._judged(answers, text, judge.mode)
        matches = answers // 2 if rl.group_size == 2 else answers
        return [_Ask(2 * matches, self._compared(text) + rl.sampling.max_tokens, 1)]

    def _evaluate(self) -> list[_Ask]:
        cfg, counts = self._cfg, self._counts
        settings, systems = cfg.evaluation, len(systems_of(cfg))
        prompts = min(settings.limit or counts.eval_prompts, counts.eval_prompts)
        text = cfg.max_prompt_tokens + settings.sampling.max_tokens
        reply = (cfg.curate or CurateConfig()).reply_tokens
        found = self._debated(systems * min(cfg.debated_prompts, prompts), text, reply) if cfg.debated_prompts else []
        if cfg.judge is None:
            return found
        found += self._judged(systems * prompts, text, cfg.judge.single_mode)
        found += self._judged(counts.labelled_test + 2 * min(counts.pairs_eval, _PAIRS), 2 * _LONG, cfg.judge.single_mode)
        if settings.win_rates:  # every two systems, and each against the data's own answers, in both orders
            matches = (systems * (systems - 1) // 2 + systems) * min(settings.win_rates, prompts)
            found.append(_Ask(2 * matches, self._compared(text) + settings.sampling.max_tokens, 1))
        return found

    def _compared(self, text: int) -> int:
        return self._fixed("compare") + self._listed(self._principles) + text

    def _judged(self, answers: int, text: int, mode: str) -> list[_Ask]:
        """The requests for verdicts on answers; `text`: tokens of a request with its answer."""
        if mode == "checklist":
            fixed = [self._fixed_detector([principle]) for principle in self._principles]
            return [_Ask(answers * len(fixed), max(fixed) + text, 1)]
        spoken = mode in ("binary", "k_vote")
        votes = self._cfg.judge.votes if mode == "k_vote" else 1
        limit = requests_for(self._prompts, self._principles, [("", "")])[0].max_tokens
        return [_Ask(answers * votes, self._fixed_detector(self._principles) + text, limit if spoken else 1)]

    def _fixed_detector(self, principles: list[str]) -> int:
        request = requests_for(self._prompts, principles, [("", "")])[0]
        return sum(len(message.content) + _TEMPLATE for message in request.messages)

    def _listed(self, principles: list[str]) -> int:
        return sum(len(principle) + 4 for principle in principles)

    def _fixed(self, role: str) -> int:
        """Tokens of a role's template without the texts that go into it."""
        return len(self._prompts.render(role, **_NOTHING)) + _TEMPLATE


def print_requests(cfg: RunConfig, place: Placement, console: Console) -> None:
    """Prints the table; nothing for a config that asks no model."""
    try:
        rows = estimate_requests(cfg, data_counts(cfg, place)) if cfg.feedback is not None else []
    except UserError as error:
        console.print(f"requests to the feedback model: not known without the data: {error}", markup=False, soft_wrap=True)
        return
    if not rows:
        return
    paid = cfg.feedback.backend == "http" and bool(cfg.feedback.http.price_prompt or cfg.feedback.http.price_completion)
    title = "requests to the feedback model (tokens and money: upper bounds; repeated and stored replies are not counted)"
    table = Table("stage", "requests", "prompt tokens", "reply tokens", *(["money"] if paid else []), title=title)
    whole = [StageRequests("all", *(sum(getattr(r, n) for r in rows) for n in _NUMBERS))] if len(rows) > 1 else []
    for row in [*rows, *whole]:
        cells = [f"{row.requests:,}", f"{row.prompt_tokens:,}", f"{row.completion_tokens:,}"]
        table.add_row(row.stage, *cells, *([f"{row.money:,.4g}"] if paid else []))
    console.print(table)
    if cfg.feedback.backend == "http" and not paid:
        console.print("feedback.http.price_prompt and price_completion (money per million tokens) show what this costs")


_NUMBERS = ("requests", "prompt_tokens", "completion_tokens", "money")
