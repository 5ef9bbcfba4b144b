"""What each arm cost, beside what it gained: a table of the report, from what the stages wrote about themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.stages import (
    CURATE,
    EVALUATE,
    FEEDBACK,
    PRINCIPLES,
    REWARD,
    SFT,
    TOKENIZER,
    Stage,
    needed_by,
    stage_of,
)
from rlaif_jax.evaluation.compare import System, difference, is_rate
from rlaif_jax.evaluation.hacking import Candidate, has_headroom
from rlaif_jax.evaluation.headline import scores_for
from rlaif_jax.evaluation.report import Table
from rlaif_jax.evaluation.text import cell_parts, label
from rlaif_jax.runs.folder import Run

_SHARED = (TOKENIZER.name, SFT.name)
_COLUMNS = ("arm", "labelled answers", "preference pairs", "LLM requests", "LLM tokens", "money", "minutes", "gain")
_NOTE = (
    "Minutes and requests are those of the stages that the arm needs, without tokenizer and SFT, which every arm shares. An LLM "
    "that runs on the devices costs minutes and no money. Tokens are prompt + completion. Money is what the price fields of "
    "feedback.http say. Gain: difference to what the arm started from, by a score that it was not trained on."
)


def cost_table(x: Run, systems: Sequence[System], candidates: Sequence[Candidate], rows: Mapping[str, int]) -> Table | None:
    """One line per arm, then SFT and the evaluation. `rows`: what the arms learn from -> number of rows (`training_of_arms`)."""
    arms = [c for c in candidates if c.name in x.cfg.all_arms()]
    if not arms:
        return None
    known = {s.name: s for s in systems}
    lines = []
    for c in arms:
        stages = own_stages(x.cfg, stage_of(x.cfg, c.name))
        facts = {s.name: x.facts(s.name) for s in stages if x.is_done(s.name)}
        lines.append((c.name, _labelled(x.cfg, facts, rows), _pairs(facts), *_paid(facts.values()), _gain(known, c)))
    for name, names in (("shared by all", _SHARED), ("evaluation", (EVALUATE.name,))):
        facts = {n: x.facts(n) for n in names if x.is_done(n)}
        lines.append((name, "–", "–", *_paid(facts.values()), "–"))
    return Table("What each arm cost, and what it gained", _COLUMNS, tuple(lines), _NOTE)


def own_stages(cfg: RunConfig, arm: Stage) -> list[Stage]:
    """The stages that an arm needs, itself included, without those that every arm needs."""
    found, todo = {}, [arm]
    while todo:
        stage = todo.pop()
        if stage.name not in found and stage.name not in _SHARED:
            found[stage.name] = stage
            todo += needed_by(cfg, stage)
    return list(found.values())


def _labelled(cfg: RunConfig, facts: Mapping[str, Any], rows: Mapping[str, int]) -> str:
    found = []
    if PRINCIPLES.name in facts or (FEEDBACK.name in facts and cfg.feedback.source == "labelled"):
        found.append(f"{rows.get('judge', 0):,}")
    if REWARD.name in facts and cfg.reward.loss == "binary":
        found.append(f"{facts[REWARD.name].get('examples', 0):,} (reward model)")
    if FEEDBACK.name in facts and cfg.feedback.source == "corpus":
        written = facts[FEEDBACK.name].get("transcripts", 0) + facts[FEEDBACK.name].get("verdict_pairs", 0)
        found.append(f"{written:,} transcripts and pairs of verdicts, written by the bundled corpus")
    return " + ".join(found) or "0"


def _pairs(facts: Mapping[str, Any]) -> str:
    if REWARD.name not in facts:
        return "0"
    curated = facts.get(CURATE.name, {}).get("pairs", 0)
    total = facts[REWARD.name].get("examples", 0)
    return f"{total:,}" + (f" ({curated:,} of them curated)" if curated else "")


def _paid(facts: Any) -> tuple[str, str, str, str]:
    """Requests, tokens, money and minutes of some stages. Stages of older versions keep what they paid under other names."""
    requests = cached = tokens = money = seconds = 0.0
    for stage in facts:
        spent = stage.get("spending") or stage
        requests += spent.get("requests", spent.get("replies_paid", 0))
        cached += spent.get("cached", spent.get("replies_from_cache", 0))
        tokens += spent.get("prompt_tokens", 0) + spent.get("completion_tokens", 0)
        money += spent.get("money", spent.get("spent", 0.0))
        seconds += stage.get("seconds", 0.0)
    asked = f"{requests:,.0f}" + (f" (and {cached:,.0f} from the cache)" if cached else "")
    return asked, f"{tokens:,.0f}", f"{money:.2f}", f"{seconds / 60:.1f}"


def _gain(known: Mapping[str, System], c: Candidate) -> str:
    a, b = known[c.reference], known[c.name]
    name = next((n for n in scores_for((a, b), (c,)) if has_headroom(a, n)), None)
    if name is None:
        return "no independent score with room for a gain"
    rate = is_rate((a, b), name)
    parts = cell_parts(difference(a, b, name), rate, sign=True)
    return f"{label(name)} {parts['value']} {parts['interval']}{' points' if rate else ''}".strip()
