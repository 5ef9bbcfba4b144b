"""Every stage with an adapter: the base stays, one base is policy and reference, and the sum goes out."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.cli import main
from rlaif_jax.commands.export import export, export_adapter
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.models import lora
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig, preset
from rlaif_jax.runs.folder import open_run
from rlaif_jax.runs.models import RunModels
from rlaif_jax.stages import pipeline
from rlaif_jax.trainers.config import DpoConfig
from rlaif_jax.trainers.metrics_log import read_metrics
from tests import hf, tiny
from tests.trainers.states import restore_all

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # the parts are in models/test_lora.py and test_lora_critic.py
QUIET = Console(quiet=True)
LORA = LoraConfig({"layers/(q|v|up)": 4}, alpha=8.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """tokenizer, SFT, reward model, DPO and RL of a few steps each, over bfloat16 weights of a folder."""
    folder = hf.instruct_folder(tmp_path_factory.mktemp("qwen"))
    cfg = tiny.config(steps=4, checkpoint_every=2)
    model = ModelConfig(init_from=str(folder), param_dtype="bfloat16")
    cfg = dataclasses.replace(cfg, model=model, lora=LORA, grader=None, dpo=DpoConfig(cfg.sft.train, max_length=96))
    x = open_run(tmp_path_factory.mktemp("run") / "run", cfg, QUIET)
    pipeline.run(x, ("tokenizer", "sft", "reward", "dpo", "rl"))
    return x, folder


def _losses(x, stage):
    return [r["loss"] for r in read_metrics(x.folder(stage) / "metrics.jsonl") if "loss" in r]


def test_only_the_targets_move_and_only_adapters_are_saved(run):
    x, _ = run
    models = RunModels(x)
    weights = {stage: models.policy(stage) for stage in ("base", "sft", "dpo", "rl")}
    assert {w.dtype.name for w in jax.tree.leaves(weights["rl"])} == {"bfloat16"}
    for before, after in (("base", "sft"), ("sft", "dpo"), ("sft", "rl")):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), weights[before], weights[after])
        changed = {name for name, equal in same["layers"].items() if not equal}
        assert changed == {"q", "v", "up"} and same["embed"] and same["final_norm"], (before, after)
    reward, sft = models.scalar("reward"), weights["sft"]
    assert float(np.abs(reward["head"]["score"]).max()) > 0
    np.testing.assert_array_equal(reward["model"]["embed"], sft["embed"])
    _, saved = restore_all(x.folder("sft") / "checkpoints")
    count = sum(v.size for v in jax.tree.leaves(models.trained("sft")))
    assert sum(v.size for v in jax.tree.leaves(saved["params"])) == count, "no base in a checkpoint"
    assert sum(v.size for v in jax.tree.leaves(saved["rest"])) < 2 * count + 10, "two moments and a few counts"


def test_a_fresh_adapter_changes_nothing_and_the_first_kl_is_zero(run):
    x, _ = run
    held_out = [r["eval/loss"] for r in read_metrics(x.folder("sft") / "metrics.jsonl") if "eval/loss" in r]
    assert held_out[-1] < held_out[0], "single training batches differ more than four steps can show"
    assert _losses(x, "dpo")[0] == pytest.approx(np.log(2), abs=1e-3), "policy and reference are the same model at first"
    rows = [r for r in read_metrics(x.folder("rl") / "metrics.jsonl") if "kl" in r]
    assert abs(rows[0]["kl_sequence"]) < 1e-6 and rows[-1]["step"] == 4, "policy and reference share the base"
    assert abs(rows[0]["rollout_mismatch"]) < 0.05


def test_the_sum_and_the_adapter_go_out_alike(run, tmp_path, capsys):
    import peft
    import transformers

    x, folder = run
    export(x, "sft", tmp_path / "sum", dtype="float32")
    export_adapter(x, "sft", tmp_path / "adapter")
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sum", **options).eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    tokens, segments = hf.rows(left=False)
    inputs = hf.torch_inputs(tokens, segments)
    with torch.no_grad():
        plain = base(**inputs).logits
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(**inputs).logits
        merged = whole(**inputs).logits
    # The run keeps bfloat16 weights, so its sum is rounded to them.
    assert (adapted - merged).abs().max() < 0.3 * (adapted - plain).abs().max() + 0.05
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter").chat_template
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card and "PeftModel.from_pretrained" in card and str(tmp_path) not in card
    command = ["generate", "--prompt", "新年好", "--temperature", "0", "--max-tokens", "8", "--model"]
    assert main([*command, str(folder), "--adapter", str(tmp_path / "adapter")]) == 0
    assert capsys.readouterr().out.count("\n") >= 2


@pytest.mark.parametrize(("stage", "rank"), [("rl", 8), ("dpo", 8), ("reward", 8)])
def test_a_later_stages_adapter_is_the_sum_over_the_base(run, tmp_path, stage, rank):
    """RL, DPO and the reward model start from base plus SFT's adapter: one adapter over the base alone gives their logits."""
    import peft
    import transformers

    x, folder = run
    export(x, stage, tmp_path / "merged", dtype="float32")
    export_adapter(x, stage, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["r"] == rank
    scalar = stage == "reward"
    kind = transformers.AutoModelForSequenceClassification if scalar else transformers.AutoModelForCausalLM
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    base = kind.from_pretrained(folder, **options, **({"num_labels": 1} if scalar else {})).eval()
    merged = kind.from_pretrained(tmp_path / "merged", **options).eval()
    base.config.pad_token_id = merged.config.pad_token_id
    inputs = hf.torch_inputs(*hf.rows(left=False))
    with torch.no_grad():
        expected = merged(**inputs).logits
        found = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(**inputs).logits
    assert (found - expected).abs().max() < 0.02 * expected.abs().max() + 0.02, "but for rounding to bfloat16"


def test_a_checkpoint_of_an_adapter_resumes_with_the_same_bytes(run, tmp_path):
    x, _ = run
    again = open_run(tmp_path / "again", x.cfg, QUIET)
    stages = ("tokenizer", "sft")
    pipeline.run(again, stages)
    jax.tree.map(np.testing.assert_array_equal, *(RunModels(y).trained("sft") for y in (x, again)))
    newest = again.folder("sft") / "checkpoints" / "4"
    for part in (newest, again.folder("sft") / "done.json"):
        part.rename(tmp_path / f"away-{part.name}")
    pipeline.run(again, stages)
    jax.tree.map(np.testing.assert_array_equal, *(RunModels(y).trained("sft") for y in (x, again)))


def test_without_a_lora_section_there_is_no_adapter(tmp_path, one_device):
    x = open_run(tmp_path / "run", tiny.config(), QUIET)
    x.folder("tokenizer").mkdir(parents=True)
    Tokenizer.train(["祝福"], 300, x.folder("tokenizer") / "tokenizer")
    with pytest.raises(UserError, match="no lora section"):
        RunModels(x).adapter("sft")


def test_the_plan_counts_the_adapter(run, tmp_path, capsys):
    from rlaif_jax.config.values import to_dict
    from rlaif_jax.plan.estimate import plan, print_plan
    from rlaif_jax.sharding import Placement, make_mesh

    x, _ = run
    place = Placement(make_mesh(x.cfg.mesh))
    full = dataclasses.replace(x.cfg, lora=None)
    (a, b) = ({r.name: r.parts for r in plan(cfg, place)} for cfg in (x.cfg, full))
    models = RunModels(x)

    def size(make) -> int:
        return sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(jax.eval_shape(make)))

    adapter, weights = size(lambda: lora.init(models.config, LORA, jax.random.key(0))), size(models.fresh_policy)
    assert a["sft"]["adapter"] == a["sft"]["gradients"] == adapter and 2 * adapter <= a["sft"]["optimizer"] < 2.1 * adapter
    assert b["sft"]["weights"] == weights and 6 * weights <= b["sft"]["optimizer"] < 6.1 * weights, "masters and moments"
    head = 4 * models.config.width
    assert a["rl"]["reward model"] == adapter + head and "reference" not in a["rl"], "both lie over the policy's base"
    assert b["rl"]["reward model"] == b["rl"]["reference"] == weights
    other = dataclasses.replace(x.cfg, reward=dataclasses.replace(x.cfg.reward, init="base"))
    assert next(r.parts for r in plan(other, place) if r.name == "rl")["reward model"] == weights, "another base"
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_dict(x.cfg)))
    assert main(["run", str(config), "--dry-run", "--out", str(tmp_path / "x")]) == 0
    shown = {}
    for adapters in (LoraConfig({"layers/(q|k|v|o|gate|up|down)": 64}), None):  # parts below 1 MiB are not listed
        console = Console(width=250, record=True, quiet=False, file=io.StringIO())
        print_plan(dataclasses.replace(tiny.config(), model=preset("base-12m"), lora=adapters), console)
        shown[adapters is None] = console.export_text()
    assert "adapter" in shown[False] and "adapter" not in shown[True]
