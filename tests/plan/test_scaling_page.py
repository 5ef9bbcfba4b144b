"""docs/scaling.md says what the TPU compiler says: each program of its plans is compiled and compared (slow, one at a time)."""

import dataclasses
import json

import jax
import pytest

from benchmarks.weak_scaling import TOPOLOGIES, grown
from rlaif_jax.config import load_config
from rlaif_jax.plan import compiled as aot
from rlaif_jax.plan.chips import CHIPS, parse_topology
from tests.config.test_config import ROOT
from tests.plan import scaling_tables
from tests.plan.scaling_tables import GIB, number
from tests.plan.test_plan import NAMES, needs_libtpu

PLANS = {plan.topology: plan for plan in scaling_tables.plans()}
WEAK = scaling_tables.weak_scaling()
CASES = [(topology, name) for topology in PLANS for name in PLANS[topology].rows]


def test_the_page_has_the_plans_and_their_figures_fit_together():
    assert list(PLANS) == ["v5e:8x8", "v5p:4x4x2", "v6e:4x8", "v5p:8x8x8", "v5p:4x4x4"]
    for topology, plan in PLANS.items():
        version, chips = parse_topology(topology)
        chip, cfg = CHIPS[version], load_config(ROOT / plan.config, plan.changes)
        assert cfg.mesh.data * cfg.mesh.fsdp * cfg.mesh.tensor == chips
        beside = cfg.feedback is not None and cfg.feedback.backend == "folder"
        assert list(plan.rows) == NAMES + ["rl_judge: verdicts"] * beside
        for name, row in plan.rows.items():
            assert number(row["of these held"]) < number(row["memory"]) < chip.memory / GIB, (topology, name)
            gib = sum(number(cell) for column, cell in row.items() if column.startswith("received"))
            bounds = {"compute": number(row["TFLOP"]) * 1e12 / chip.flops, "collectives": gib * GIB / chip.links}
            least, bound = number(row["at least"]), row["bound by"]
            assert all(seconds <= least * 1.02 + 0.005 for seconds in bounds.values()), (topology, name)
            assert bound == "memory" or bounds[bound] == pytest.approx(least, rel=0.02, abs=0.006), (topology, name)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("topology", "name"), CASES, ids=[f"{t}-{n}" for t, n in CASES])
def test_a_program_of_the_page(topology, name):
    """It compiles and fits, and with the page's version of jax its figures are the page's."""
    plan = PLANS[topology]
    (found,) = aot.plan_run(load_config(ROOT / plan.config, plan.changes), topology, [name])
    assert found.fits and found.step_seconds > 0
    assert any("fsdp" in c.axes and c.bytes > GIB for c in found.collectives), "a chip has no whole weights"
    if f"jax {jax.__version__}," not in scaling_tables.PAGE.read_text(encoding="utf-8"):
        return
    row, told = json.loads(json.dumps(dataclasses.asdict(found))), plan.rows[name]
    assert number(told["memory"]) == pytest.approx(found.total / GIB, rel=0.01)
    assert number(told["of these held"]) == pytest.approx(found.held / GIB, rel=0.01, abs=0.006)
    assert number(told["TFLOP"]) == pytest.approx(found.flops / 1e12, rel=0.01)
    for axes, gib in scaling_tables.received(row).items():
        assert number(told.get(f"received over {axes}", "-")) == pytest.approx(gib, rel=0.02, abs=0.1), axes
    assert number(told["at least"]) == pytest.approx(found.step_seconds, rel=0.02, abs=0.006)
    assert told["bound by"] == max(found.seconds, key=found.seconds.get)


def test_the_table_of_weak_scaling_has_all_sizes_and_its_figures_fit_together():
    config, rows = WEAK
    assert tuple(rows) == TOPOLOGIES
    for topology, row in rows.items():
        version, chips = parse_topology(topology)
        mesh = grown(load_config(ROOT / config), chips, "copies", 16, 2).mesh
        assert row["mesh"] == (f"data {mesh.data} x " if mesh.data > 1 else "") + f"fsdp {mesh.fsdp}"
        assert number(row["chips"].replace(",", "")) == chips
        gib = number(row["received over data+fsdp"]) + number(row["received over fsdp"])
        assert number(row["received"]) == pytest.approx(gib, abs=0.2), "what goes over data alone has no column"
        assert number(row["receiving at least"]) == pytest.approx(number(row["received"]) * GIB / CHIPS[version].links, abs=0.001)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("topology", WEAK[1])
def test_a_size_of_weak_scaling(topology):
    """The update compiles and fits, and with the page's version of jax its figures are the page's."""
    chips, row = parse_topology(topology)[1], WEAK[1][topology]
    (found,) = aot.plan_run(grown(load_config(ROOT / WEAK[0]), chips, "copies", 16, 2), topology, ["rl: update"])
    assert found.fits
    if f"jax {jax.__version__}," not in scaling_tables.PAGE.read_text(encoding="utf-8"):
        return
    received = scaling_tables.received(dataclasses.asdict(found))
    assert number(row["memory"]) == pytest.approx(found.total / GIB, rel=0.01)
    assert number(row["received"]) == pytest.approx(sum(received.values()), rel=0.01)
    for axes in ("data+fsdp", "fsdp"):
        assert number(row[f"received over {axes}"]) == pytest.approx(received.get(axes, 0.0), rel=0.01, abs=0.1)
    assert number(row["compute at least"]) == pytest.approx(found.seconds["compute"], rel=0.01)
    assert number(row["receiving at least"]) == pytest.approx(found.seconds["collectives"], rel=0.01)
