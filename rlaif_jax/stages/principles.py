"""Arm B's game: the judge's principles, optimised before RL. The stage's folder holds every version, round and event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from rlaif_jax.config.stages import Stage
from rlaif_jax.data.records import LabelledResponse
from rlaif_jax.errors import UserError
from rlaif_jax.evaluation import agreement
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.llm import LLM, spending
from rlaif_jax.feedback.multihost import lead
from rlaif_jax.feedback.principle_game import PrincipleGame
from rlaif_jax.feedback.principles import diff, read_rules
from rlaif_jax.feedback.prompts import Prompts
from rlaif_jax.feedback.verdicts import judge_verdicts
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run, write_json
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """Plays the game; with several processes, process 0 does and the others lend their devices."""
    llms = RunLlms(x, RunModels(x))
    return lead(partial(_play, x, stage, llms.prompts), llms.feedback)


def _play(x: Run, stage: Stage, prompts: Prompts, llm: LLM) -> Mapping[str, Any]:
    data, cfg, folder = RunData(x), x.cfg.judge, x.folder(stage.name)
    reflect_on, gate, test = data.game_rows()
    gate = gate[: cfg.game.gate_rows or None]
    agent = Agent(llm, prompts, x.cfg.feedback.defence)
    judge = judge_verdicts(agent, cfg.single_mode, cfg.votes, cfg.temperature)
    game = PrincipleGame(
        agent, judge, measure_on(judge, gate), cfg.game, folder, x.console,
        queries=[r.prompt for r in data.rl_prompts(x.cfg.rl.eval_prompts)[0]], labelled=reflect_on, seed=x.cfg.seed,
    )  # fmt: skip
    start = read_rules(cfg.principles, data.language)
    rows = game.play(start, read_rules(cfg.strategies, data.language))
    best = game.principles.rules(game.principles.best())
    on_test = measure_on(judge, test)
    before, after = on_test(start), on_test(best)
    write_json(folder / "result.json", {"rounds": rows, "test_before": before, "test_after": after})
    (folder / "principles.txt").write_text("".join(f"{rule}\n" for rule in best), encoding="utf-8")
    (folder / "diff.txt").write_text(diff(start, best) + "\n", encoding="utf-8")
    x.console.print(diff(start, best), markup=False, highlight=False)
    names = ("balanced_accuracy", "kappa", "accuracy")
    return {f"test_{n}_{when}": scores[n] for n in names for when, scores in (("before", before), ("after", after))} | {
        "principles": len(best), "n": after["n"], **spending(llm)
    }  # fmt: skip


def measure_on(judge: Callable, rows: Sequence[LabelledResponse]) -> Callable[[Sequence[str]], dict[str, float]]:
    """principles -> accuracy, balanced accuracy, kappa and n of the judge on these rows (those with a verdict)."""

    def measure(principles: Sequence[str]) -> dict[str, float]:
        p = judge(principles, [(r.prompt, r.response) for r in rows]).p_good
        known = ~np.isnan(p)
        if not known.any():
            raise UserError("the judge gave no verdict on any labelled row; are backend and prompts right?")
        found = agreement.agreement(np.nan_to_num(p), [r.label for r in rows], known)
        return {
            "accuracy": found.accuracy.value, "balanced_accuracy": found.balanced_accuracy, "kappa": found.kappa,
            "n": int(known.sum()),
        }  # fmt: skip

    return measure
