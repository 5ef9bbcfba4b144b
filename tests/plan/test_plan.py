"""`rlaif plan`: topologies, messages, tables; and the real compiler, where it is installed."""

import dataclasses
import importlib.util
import json

import jax
import pytest
from rich.console import Console

from rlaif_jax.cli import main
from rlaif_jax.config.overrides import overridden
from rlaif_jax.configs._targets import greetings_7b
from rlaif_jax.errors import UserError
from rlaif_jax.models import lora
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import parameter_count
from rlaif_jax.plan import compiled as aot
from rlaif_jax.plan.abstract import chip_bytes
from rlaif_jax.plan.chips import CHIPS, Chip, parse_topology, topology_devices
from rlaif_jax.plan.estimate import planned_mesh, planned_model
from rlaif_jax.plan.hlo import Collective, collectives, unordered
from rlaif_jax.plan.programs import build_programs
from rlaif_jax.sharding import MeshConfig, Placement, make_mesh
from rlaif_jax.trainers.config import CriticConfig
from tests import tiny

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu-aot]'")
NAMES = ["sft", "reward", "rl: rollout", "rl: log-probs", "rl: scores", "rl: update"]


def _tiny(**changes):
    return dataclasses.replace(tiny.config(), **{"mesh": MeshConfig(data=1, fsdp=2, tensor=2)} | changes)


@pytest.mark.parametrize(
    ("name", "message"),
    [("v5e", "VERSION:SHAPE"), ("v9:2x2", "versions: v4, v5e"), ("v5e:2x2x2", "2 dimensions"), ("v5p:4x4", "3 dimensions"),
     ("v5e:16x32", "at most 16")],
)  # fmt: skip
def test_topologies_that_do_not_exist(name, message):
    with pytest.raises(UserError, match=message):
        parse_topology(name)
    assert parse_topology("v5p:4x4x2") == ("v5p", 32)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_the_compiler_it_says_what_to_install():
    with pytest.raises(UserError, match="tpu-aot"):
        topology_devices("v5e:2x2")


def test_what_the_compiler_says_of_too_large_a_program():
    message = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    message += "Used 20.31G of 15.75G hbm. Exceeded hbm capacity by 4.56G."
    assert aot.needed_bytes(message) == round(20.31 * 2**30)
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (125.14G) exceeds "
    assert aot.needed_bytes(message + "available HBM (95.74G).") == round(125.14 * 2**30)
    assert aot.needed_bytes("INTERNAL: something else") is None


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """The texts of the programs that are measured."""
    texts: list[str] = []
    monkeypatch.setattr(aot, "collectives", lambda text, *rest: texts.append(text) or collectives(text, *rest))
    return texts


@pytest.mark.slow
def test_every_program_compiles_with_its_abstract_arguments(eight_devices, compiled):
    """For the CPU: the same functions, arguments and shardings, without a TPU compiler; PPO has all that GRPO has.

    And several processes on CPUs cannot wait for each other for ever: collectives follow each other by what they read.
    """
    cfg = _tiny(mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    cfg = dataclasses.replace(cfg, rl=dataclasses.replace(cfg.rl, critic=CriticConfig()))
    programs = build_programs(cfg, planned_model(cfg), eight_devices)
    assert [p.name for p in programs] == NAMES
    chip = Chip(2**30, 1e12, 1e11, 1e10)
    for program in programs:
        row = aot.measure(program, eight_devices, chip)
        assert row.fits and row.total >= row.arguments + row.held > 0 and row.flops > 0
        assert row.step_seconds == max(row.seconds.values()) > 0
        assert {axis for c in row.collectives for axis in c.axes.split("+")} & {"tensor"}
    assert [unordered(text) for text in compiled] == [[]] * len(NAMES)


@pytest.mark.slow
def test_with_a_lora_section_the_programs_are_those_of_adapters(eight_devices, compiled):
    cfg = _tiny(mesh=MeshConfig(data=2, fsdp=2, tensor=2), lora=LoraConfig({"layers/(q|v|up)": 4}))
    cfg = dataclasses.replace(cfg, rl=dataclasses.replace(cfg.rl, critic=CriticConfig()))
    model, chip = planned_model(cfg), Chip(2**30, 1e12, 1e11, 1e10)
    configs = cfg, dataclasses.replace(cfg, lora=None)
    programs, whole = ({p.name: p for p in build_programs(c, model, eight_devices)} for c in configs)
    assert list(programs) == list(whole) == NAMES
    adapter = jax.eval_shape(lambda: lora.init(model, cfg.lora, jax.random.key(0)))
    count = sum(x.size for x in jax.tree.leaves(adapter))
    for name in ("sft", "reward", "rl: update"):
        state = programs[name].arguments[0]
        base = programs[name].arguments[-1] if name == "rl: update" else state.frozen  # what is donated holds no base
        base = base["model"] if name == "reward" else base
        assert sum(x.size for x in jax.tree.leaves(base)) == parameter_count(model), name
        trained = state.params["model"] if name == "reward" else state.params
        assert jax.tree.map(lambda x: x.shape, trained) == jax.tree.map(lambda x: x.shape, adapter), name
        assert sum(x.size for x in jax.tree.leaves(state.opt_state)) < 2.1 * count + 100, "moments of what is trained alone"
    critic = programs["rl: update"].arguments[0].critic
    assert critic.params.keys() == {"model", "head"} and critic.frozen is None
    for name, program in programs.items():
        row, full = aot.measure(program, eight_devices, chip), whole[name]
        assert row.fits and row.flops > 0
        assert row.arguments + row.held < chip_bytes(full.arguments) + chip_bytes(full.held), name
    assert [unordered(text) for text in compiled] == [[]] * len(NAMES)
    rows = {n: chip_bytes(p.held) + chip_bytes(p.arguments) for n, p in programs.items() if n.startswith("rl")}
    assert max(rows.values()) < 1.2 * min(rows.values()), "whatever runs, the stage keeps the same"
    inputs = programs["rl: log-probs"].arguments[0]
    bases = [x for x in jax.tree.leaves(inputs[1:3]) if x is inputs[1]["embed"]]
    assert len(bases) == 2, "the critic reads the reference's own weights"


def test_held_and_arguments_add_up_to_what_the_stage_keeps():
    place = Placement(planned_mesh(greetings_7b("v5e-64").mesh))
    for algorithm, models in (("grpo", 4 + 2), ("ppo", 4 + 4 + 2)):  # weights and two moments; reference and reward model
        cfg = greetings_7b("v5e-64", algorithm)
        model = planned_model(cfg)
        per_model = 4 * parameter_count(model) / 64
        kept = models - (1 if algorithm == "grpo" else 2)  # gradients are no argument
        for program in build_programs(cfg, model, place)[2:]:
            params = sum(chip_bytes(tree) for tree in program.held) + chip_bytes(program.arguments)
            held = kept - 1 if program.name.startswith("rl_judge") else kept  # that judge is an API: no reward model
            assert params == pytest.approx(held * per_model, rel=0.02), program.name


def test_a_remedy_is_the_first_setting_that_fits(monkeypatch):
    cfg = _tiny()
    devices = jax.devices()[:4]
    programs = aot._programs(cfg, devices)
    program = programs["sft"][1]
    tried = []

    def measure(program, place, chip):
        tried.append(dict(place.mesh.shape))
        row = aot.Row(program.name, 0, 0, 0, 0, 0, len(tried) > 1, 0.0, (), {}, 0.0, 0.0)
        return row

    monkeypatch.setattr(aot, "measure", measure)
    assert program.remedies == (("sft.train.grad_accumulation=2",), ("sft.train.grad_accumulation=4",))
    assert aot._remedy(cfg, program, devices, CHIPS["v5e"]) == "--set sft.train.grad_accumulation=4"
    rollout = programs["rl: rollout"][1]
    assert rollout.remedies[-1] == ("mesh.fsdp=1", "mesh.tensor=4")
    tried.clear()
    monkeypatch.setattr(aot, "measure", lambda program, place, chip: dataclasses.replace(measure(program, place, chip), fits=False))
    assert aot._remedy(cfg, rollout, devices, CHIPS["v5e"]) == "" and tried[-1]["tensor"] == 4


def test_tables_and_json(tmp_path, monkeypatch, capsys):
    rows = [
        aot.Row("sft", 2**20, 2**21, 0, 0, 3 * 2**20, True, 2e12, (Collective("all-gather", "fsdp", 28.0, 5e9),),
                {"compute": 0.5, "memory": 0.25, "collectives": 0.1}, 0.5, 1.0),
        aot.Row("rl: rollout", 2**30, 0, 0, 0, 20 * 2**30, False, 1e12, (), {}, 0.0, 1.0, "--set rl.rollout_chunks=2"),
    ]  # fmt: skip
    monkeypatch.setattr(aot, "plan_run", lambda *_: rows)
    path = tmp_path / "plan.json"
    assert not aot.run_plan(_tiny(), "v5e:2x2", (), path, Console(width=120))
    text = capsys.readouterr().out
    for piece in ("4 chips of 16 GiB", "3.0 MiB", "0.5 s", "compute", "all-gather", "fsdp", "4.66 GiB",
                  "rl: rollout does not fit: 20.00 GiB of 16.00 GiB; it fits with --set rl.rollout_chunks=2"):  # fmt: skip
        assert piece in text, piece
    saved = json.loads(path.read_text())
    assert saved["chips"] == 4 and saved["programs"][0]["collectives"][0]["axes"] == "fsdp"
    assert saved["programs"][1]["remedy"] and saved["chip"]["memory"] == 16 * 2**30


def test_what_was_compiled_is_kept_when_a_later_program_fails(tmp_path, monkeypatch):
    def rows(*_):
        yield aot.Row("sft", 2**20, 0, 0, 0, 2**20, True, 2e12, (), {"compute": 0.5}, 0.5, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(aot, "plan_run", rows)
    with pytest.raises(KeyboardInterrupt):
        aot.run_plan(_tiny(), "v5e:2x2", (), tmp_path / "plan.json", Console(quiet=True))
    assert [p["name"] for p in json.loads((tmp_path / "plan.json").read_text())["programs"]] == ["sft"]


def test_a_json_that_cannot_be_written_is_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(aot, "plan_run", lambda *_: pytest.fail("compiles"))
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path, message in ((tmp_path / "precious.txt", "holds no plan"), (tmp_path / "folder", "cannot be written"),
                          (tmp_path / "precious.txt" / "x.json", "cannot be written")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            aot.run_plan(_tiny(), "v5e:2x2", (), path, Console(quiet=True))
    assert (tmp_path / "precious.txt").read_text() == "mine" and len(list(tmp_path.rglob("*"))) == 2


def test_batches_that_several_processes_would_refuse_are_told(monkeypatch, capsys):
    monkeypatch.setattr(aot, "plan_run", lambda *_: [])
    cfg = overridden(_tiny(mesh=MeshConfig(data=2, fsdp=4)), ["reward.train.batch_size=6"])
    aot.run_plan(cfg, "v5e:2x4", (), None, Console(width=200))
    assert "reward.train.batch_size is 6, and must be a multiple of the 8 row shards" in capsys.readouterr().out


def test_mistakes_on_the_command_line(tmp_path, capsys):
    config = tmp_path / "c.py"
    config.write_text("from tests.tiny import config\n")
    assert main(["plan", str(config), "--topology", "v5e"]) == 2
    assert "VERSION:SHAPE" in capsys.readouterr().err


@needs_libtpu
def test_mesh_program_and_topology_must_fit_together():
    with pytest.raises(UserError, match="there are 4"):
        list(aot.plan_run(overridden(_tiny(), ["mesh.fsdp=3"]), "v5e:2x2"))
    with pytest.raises(UserError, match="this run has sft, reward"):
        list(aot.plan_run(_tiny(), "v5e:2x2", ["sfd"]))
    with pytest.raises(UserError, match="v5e:3x5"):
        topology_devices("v5e:3x5")
    assert len(topology_devices("v4:2x2x1")) == 4, "a v4 chip is one device, not two"


@needs_libtpu
def test_a_mesh_axis_may_be_a_part_of_a_side_of_the_machine():
    mesh = make_mesh(MeshConfig(data=2, fsdp=8), topology_devices("v5e:4x4"))
    assert mesh.shape["fsdp"] == 8 and len({d.id for d in mesh.devices.flat}) == 16
    mesh = make_mesh(MeshConfig(data=4, fsdp=512), topology_devices("v5p:8x16x16"))
    assert mesh.shape["fsdp"] == 512 and len({d.id for d in mesh.devices.flat}) == 2048


@needs_libtpu
@pytest.mark.slow
def test_the_tpu_compiler_on_a_tiny_run(tmp_path):
    path = tmp_path / "plan.json"
    cfg = _tiny(rl=dataclasses.replace(tiny.config().rl, critic=CriticConfig()))
    assert aot.run_plan(cfg, "v5e:2x2", (), path, Console(quiet=True))
    rows = {row["name"]: row for row in json.loads(path.read_text())["programs"]}
    assert list(rows) == NAMES
    for row in rows.values():
        assert row["fits"] and row["flops"] > 0 and row["total"] < 2**30
        axes = {c["axes"] for c in row["collectives"]}
        assert axes & {"tensor", "fsdp", "fsdp+tensor"}
    assert any(c["axes"] == "fsdp" for c in rows["sft"]["collectives"]), "weights are split over fsdp"
