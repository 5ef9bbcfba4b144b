"""docs/costs.md calculates with the steps of the config and the seconds of docs/scaling.md."""

import re

import pytest

from rlaif_jax.config import load_config
from tests.config.test_config import ROOT
from tests.plan import scaling_tables
from tests.plan.scaling_tables import number

PAGE = (ROOT / "docs/costs.md").read_text(encoding="utf-8")


def _rows() -> dict[str, list[float]]:
    found = re.findall(r"^\| (sft|reward|rl|rl_judge) \| (\d+) \| ([\d.]+) \| (\d+) \|$", PAGE, re.MULTILINE)
    return {name: [float(cell) for cell in cells] for name, *cells in found}


def test_steps_and_seconds_are_those_of_config_and_plan():
    cfg = load_config(ROOT / "configs/qwen25_7b_grpo_v5e_64.py")
    plan = next(p for p in scaling_tables.plans() if p.topology == "v5e:8x8")
    least = {name: number(row["at least"]) for name, row in plan.rows.items()}
    programs = {
        "sft": ["sft (64 rows of 768)"], "reward": ["reward (128 pairs of 768, 8 x 16)"],
        "rl": ["rl: rollout", "rl: log-probs", "rl: scores", "rl: update (2 mini-batches)"],
        "rl_judge": ["rl: rollout", "rl: log-probs", "rl: update (2 mini-batches)"],
    }  # fmt: skip
    steps = {"sft": cfg.sft.train.steps, "reward": cfg.reward.train.steps}
    steps |= {arm: cfg.rl_of(arm).train.steps for arm in ("rl", "rl_judge")}
    rows = _rows()
    assert list(rows) == list(programs)
    names = {name.partition(" (")[0]: name for name in least}
    for stage, (count, seconds, total) in rows.items():
        found = sum(least[names[p.partition(" (")[0]]] for p in programs[stage])
        assert count == steps[stage] and seconds == pytest.approx(found, abs=0.006), stage
        assert total == pytest.approx(count * seconds, abs=0.6), stage
    total = sum(row[2] for row in rows.values())
    assert f"The sum is {total:,.0f} s" in PAGE
    hours = total / 3600
    assert f"{hours:.1f} hours: {hours * 64:.0f} chip-hours at least" in PAGE
    real = hours * 2.5 + 1
    assert f"it is {real:.2f} hours on 64 chips, or {round(real, 2) * 64:.0f} chip-hours" in PAGE
