"""Arm B's game: the judge's principles, optimised before RL. The stage's folder holds every version, round and event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from rlaif_jax import state_files
from rlaif_jax.config.stages import Stage
from rlaif_jax.data.records import LabelledResponse
from rlaif_jax.errors import UserError, printable
from rlaif_jax.evaluation import agreement
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.llm import LLM, worst
from rlaif_jax.feedback.multihost import lead
from rlaif_jax.feedback.principle_game import PrincipleGame
from rlaif_jax.feedback.principles import diff, read_rules, rules_text
from rlaif_jax.feedback.prompts import Prompts
from rlaif_jax.feedback.verdicts import Item, Judge, judge_verdicts, says_good
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run, write_json
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels

_FEW = 50  # labelled test rows, below which figures say little
_MOST_AWAY = 0.05  # largest share of rows that a chat API may leave unanswered


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """Plays the game; with several processes, process 0 does and the others lend their devices."""
    llms = RunLlms(x, RunModels(x), stage.name)
    return lead(partial(_play, x, stage, llms.prompts), llms.feedback)


def _play(x: Run, stage: Stage, prompts: Prompts, llm: LLM) -> Mapping[str, Any]:
    data, cfg, folder = RunData(x), x.cfg.judge, x.folder(stage.name)
    reflect_on, gate, test = data.game_rows()
    gate = gate[: cfg.game.gate_rows or None]
    _check_rows(x, gate, test)
    agent = Agent(llm, prompts, x.cfg.feedback.defence)
    judge = judge_verdicts(agent, cfg.single_mode, cfg.votes, cfg.temperature)
    game = PrincipleGame(
        agent, judge, measure_on(judge, gate), cfg.game, folder, x.console,
        queries=data.rl_prompts(x.cfg.rl.eval_prompts)[0], labelled=reflect_on, seed=x.cfg.seed,
    )  # fmt: skip
    start = read_rules(cfg.principles, data.language)
    rows = game.play(start, read_rules(cfg.strategies, data.language))
    best = game.principles.rules(game.principles.best())
    on_test = measure_on(judge, test)
    before, after = on_test(start), on_test(best)
    write_json(folder / "result.json", {"rounds": rows, "test_before": before, "test_after": after})
    state_files.write_text(folder / "principles.txt", rules_text(best))
    state_files.write_text(folder / "diff.txt", diff(start, best) + "\n")
    x.console.print(printable(diff(start, best)), markup=False, highlight=False)
    names = ("balanced_accuracy", "kappa", "accuracy")
    found = {f"test_{n}_{when}": scores[n] for n in names for when, scores in (("before", before), ("after", after))}
    return {name: value for name, value in found.items() if value is not None} | {
        "principles": len(best), "n": after["n"],
    }  # fmt: skip


def _check_rows(x: Run, gate: Sequence[LabelledResponse], test: Sequence[LabelledResponse]) -> None:
    """UserError for a gate with labels of one kind only, before the game starts; a note about test rows that say little."""
    if missing := _missing(gate):
        raise UserError(
            f"the gate of the principle game has {len(gate)} labelled rows, none of them {missing}; it needs good and bad ones. "
            "Mix the rows of data.labelled_val (without that file: of data.labelled, whose last prompts are the gate), or raise "
            f"judge.game.gate_rows (it is {x.cfg.judge.game.gate_rows}; 0 means all)"
        )
    missing = _missing(test)
    if missing or len(test) < _FEW:
        why = f", none of them {missing}" if missing else ""
        text = f"note: the judge is tested on {len(test)} labelled rows{why}; its figures say little (data.labelled_eval)"
        x.console.print(text, markup=False, highlight=False)


def _missing(rows: Sequence[LabelledResponse]) -> str:
    """The label that no row has, in words; "" if both occur."""
    return " or ".join(name for label, name in ((1, "good"), (0, "bad")) if label not in {r.label for r in rows})


def measure_on(judge: Judge, rows: Sequence[LabelledResponse]) -> Callable[[Sequence[str]], dict[str, float | None]]:
    """principles -> accuracy, balanced accuracy and kappa of the judge on all these rows, and n, the number with a verdict.

    A row without a valid verdict counts as judged wrongly: principles that silence the judge on hard answers gain nothing.
    UserError if the judge is away, since its silence then says nothing about the principles.
    """

    def measure(principles: Sequence[str]) -> dict[str, float | None]:
        if not rows:
            return {"accuracy": None, "balanced_accuracy": None, "kappa": None, "n": 0}
        verdicts = judge(principles, [Item(r.prompt, r.response, r.system).pair() for r in rows])
        known, labels = ~np.isnan(verdicts.p_good), np.array([r.label for r in rows])
        failure, away = worst(verdicts.failures), sum(f is not None and f.unanswered for f in verdicts.failures)
        why = f" ({failure})" if failure else ""
        if not known.any():
            raise UserError(f"the judge gave no verdict on any labelled row{why}; are backend and prompts right?")
        if away > _MOST_AWAY * len(rows):
            raise UserError(f"the judge did not answer on {away} of {len(rows)} labelled rows{why}; run the command again later")
        found = agreement.agreement(np.where(known, says_good(verdicts.p_good), 1 - labels), labels)
        return {
            "accuracy": found.accuracy.value, "balanced_accuracy": found.balanced_accuracy, "kappa": found.kappa,
            "n": int(known.sum()),
        }  # fmt: skip

    return measure
