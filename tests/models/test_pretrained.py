"""A run that starts from a Hugging Face folder and ends with one."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.cli import main
from rlaif_jax.commands.export import export, shard_bytes
from rlaif_jax.commands.generate import chat_messages
from rlaif_jax.config import FeedbackConfig, JudgeConfig, RewardConfig, TrainConfig
from rlaif_jax.config.overrides import overridden
from rlaif_jax.config.stages import stages_of
from rlaif_jax.config.values import to_dict
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.llm import LLMRequest, Message
from rlaif_jax.models.matrices import Int8
from rlaif_jax.models.model_config import ModelConfig, parameter_count
from rlaif_jax.models.pretrained import load_policy, resolve
from rlaif_jax.models.quant import quantise_layers
from rlaif_jax.plan.estimate import plan
from rlaif_jax.rewards.base import Sample
from rlaif_jax.runs.folder import Run, open_run
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels
from rlaif_jax.runs.rewards import RunRewards
from rlaif_jax.stages import pipeline
from tests import hf, tiny
from tests.models.test_hf import _logits

torch = pytest.importorskip("torch")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf.instruct_folder(tmp_path_factory.mktemp("qwen"))


def _config(folder, **changes):
    cfg = tiny.config(steps=2, checkpoint_every=2)
    return dataclasses.replace(cfg, model=ModelConfig(init_from=str(folder)), **changes)


@pytest.mark.slow
def test_a_run_starts_from_the_folder_and_goes_out_again(folder, tmp_path, one_device):
    import transformers

    x = Run(_config(folder), tmp_path / "run", one_device, QUIET)
    pipeline.run(x, ("tokenizer", "sft", "reward"))
    models = RunModels(x)
    assert models.tokenizer.vocab_size == Tokenizer.load(folder).vocab_size
    base, sft = models.policy("base"), models.policy("sft")
    assert jax.tree.leaves(base)[0].dtype == np.float32, "masters"
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), base, sft)
    assert 0 < max(jax.tree.leaves(moved)) < 0.01, "two small steps away from the folder's weights"

    export(x, "base", tmp_path / "base")
    hf.assert_same_tensors(hf.tensors_of(folder), hf.tensors_of(tmp_path / "base"))

    export(x, "sft", tmp_path / "sft", dtype="float32", max_shard_bytes=100_000)
    assert len(list((tmp_path / "sft").glob("*.safetensors"))) > 2
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sft").eval()
    # AutoTokenizer would put Qwen's own splitting into the tokenizer that we trained; the card says so.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "sft")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "新年好"}], tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == models.tokenizer.encode_chat_prompt("新年好")
    tokens = np.array([ids], np.int32)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens).long()).logits.numpy()
    np.testing.assert_allclose(_logits(models.config, sft, tokens, np.ones_like(tokens)), theirs, atol=1e-4)
    assert model.generation_config.eos_token_id == list(models.tokenizer.eos_ids)
    assert model.generation_config.top_k == 0

    export(x, "reward", tmp_path / "reward")
    scorer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert scorer.config.num_labels == 1 and scorer.dtype == torch.bfloat16
    card = (tmp_path / "sft" / "README.md").read_text(encoding="utf-8")
    assert "tokenizer = PreTrainedTokenizerFast" in card
    assert "## Training" in card and "model.init_from" in card and "## Evaluation" not in card and str(tmp_path) not in card


@pytest.mark.slow
def test_without_sft_the_policy_is_the_folder_as_it_is(folder, tmp_path, one_device):
    x = Run(_config(folder, sft=None, grader=None), tmp_path / "run", one_device, QUIET)
    stages = stages_of(x.cfg)
    assert "sft" not in stages
    pipeline.run(x, stages)
    models = RunModels(x)
    jax.tree.map(np.testing.assert_array_equal, models.policy("base"), models.policy("sft"))
    report = (x.folder("report") / "report.md").read_text(encoding="utf-8")
    assert "| base | rl |" in report
    export(x, "rl", tmp_path / "rl")
    card = (tmp_path / "rl" / "README.md").read_text(encoding="utf-8")
    table = report.partition("## Comparison\n")[2].partition("\n## ")[0].strip()
    assert "## Evaluation" in card and table in card
    with pytest.raises(UserError, match="not empty"):
        export(x, "rl", tmp_path / "rl")
    assert not list(tmp_path.glob(".*part"))


def test_an_imported_folder_is_the_same_start(folder, tmp_path, one_device, capsys):
    out = tmp_path / "imported"
    assert main(["import", str(folder), "--out", str(out)]) == 0
    assert "bfloat16" in capsys.readouterr().out
    cfg = _config(out)
    assert resolve(cfg.model) == resolve(_config(folder).model)
    a, b = (RunModels(Run(c, tmp_path / "run", one_device, QUIET)) for c in (cfg, _config(folder)))
    for x in (a, b):
        x.tokenizer = Tokenizer.load(folder)
    jax.tree.map(np.testing.assert_array_equal, a.policy("base"), b.policy("base"))
    assert main(["import", str(folder), "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_mistakes_are_named(folder, tmp_path, capsys):
    cfg = _config(folder)
    with pytest.raises(UserError, match=r"model\.width is 64, but .* has 48"):
        resolve(dataclasses.replace(cfg.model, width=64))
    with pytest.raises(UserError, match="no policy to start from"):
        overridden(tiny.config(), ["sft=none"])
    with pytest.raises(UserError, match="leave it empty"):
        overridden(cfg, [f"tokenizer.path={folder}"])
    scorer = hf.save(hf.random_model("qwen2", scalar=True), tmp_path / "scorer")
    with pytest.raises(UserError, match="sequence classifier"):
        resolve(ModelConfig(init_from=str(scorer)))
    x = open_run(tmp_path / "run", cfg, QUIET)
    with pytest.raises(UserError, match="has not finished"):
        pipeline.run(x, ["sft"])
    assert main(["export", str(tmp_path / "run"), "--stage", "sft", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    broken = tmp_path / "nan"
    model = hf.random_model("qwen2", vocab_size=640)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    Tokenizer.load(folder).save(hf.save(model, broken))
    generate = ["generate", "--model", str(broken), "--prompt", "你好", "--max-tokens", "2"]
    for command in (["import", str(broken), "--out", str(tmp_path / "out")], generate):
        assert main(command) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{broken}: the weights contain NaN or infinity" in error


def test_shard_sizes_are_read():
    assert [shard_bytes(t) for t in ("5GB", "1.5mb", "40 KB")] == [5 * 10**9, 1_500_000, 40_000]
    for wrong in ("5", "GB", "0MB", "-1GB", "5TB"):
        with pytest.raises(UserError, match="max-shard-size"):
            shard_bytes(wrong)


def test_the_plan_of_a_run_from_a_folder(folder, tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_dict(_config(folder))))
    assert main(["run", str(config), "--dry-run", "--out", str(tmp_path / "x"), "--set", "mesh.data=8"]) == 0
    assert f"{parameter_count(resolve(_config(folder).model)):,}" in capsys.readouterr().out
    command = ["run", "configs/greetings_lora.py", "--set", "sft=none", "--set", f"model.init_from={folder}", "--dry-run"]
    answers = {"rl.sampling.max_tokens": 200, "evaluation.sampling.max_tokens": 200}
    shorter = {"reward.max_length": 400, "rl.max_prompt_tokens": 200, **answers}
    command += [word for field, length in shorter.items() for word in ("--set", f"{field}={length}")]
    assert main(command) == 0, "the README's way"
    assert "greetings_lora" in capsys.readouterr().out


def _rewards(x: Run) -> RunRewards:
    models = RunModels(x)
    return RunRewards(x, models, RunLlms(x, models))


def test_a_reward_model_and_a_judge_of_other_folders_keep_their_own_tokenizers(folder, tmp_path, one_device):
    import transformers

    texts = ["User: Assistant: </s>新年好，祝妈妈生日快乐"] * 20
    scorer = tmp_path / "scorer"
    tokenizer = Tokenizer.train(texts, 300, scorer)
    model = hf.random_model("llama", scalar=True, vocab_size=320, pad_token_id=tokenizer.pad_id)
    hf.save(model, scorer)
    reward = RewardConfig(TrainConfig(batch_size=2), folder=str(scorer), max_length=128)
    feedback = FeedbackConfig(backend="folder", model=str(folder), batch_size=2)
    cfg = dataclasses.replace(_config(folder), reward=reward, feedback=feedback)
    assert not {"reward", "feedback"} & set(stages_of(cfg))
    x = Run(cfg, tmp_path / "run", one_device, QUIET)
    models, feedback = RunModels(x), RunLlms(x, RunModels(x)).feedback

    samples = [Sample("给妈妈", "祝妈妈生日快乐"), Sample("新年", "新年好", system="助手"), Sample("新年", "新" * 200)]
    result = _rewards(x).scalar("reward", 2)(samples)
    assert result.valid.tolist() == [True, True, False]
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(scorer)
    for sample, value in zip(samples[:2], result.values[:2], strict=True):
        turns = [*chat_messages(sample.prompt, sample.system), {"role": "assistant", "content": sample.response}]
        ids = theirs.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            assert float(model(**ids).logits[0, 0]) == pytest.approx(float(value), abs=1e-4)

    [reply] = feedback.complete([LLMRequest((Message("user", "你好"),), max_tokens=8, temperature=0.0)])
    assert reply.completion_tokens > 0 and feedback.name == str(folder)
    _check_plan_of_foreign_models(cfg, model, folder, one_device)
    with pytest.raises(UserError, match="has no stage 'reward'"):
        models.scalar("reward")
    with pytest.raises(UserError, match="holds a causal language model; expected a sequence classifier"):
        wrong = dataclasses.replace(cfg, reward=dataclasses.replace(reward, folder=str(folder)))
        _rewards(Run(wrong, tmp_path / "run", one_device, QUIET)).scalar("reward", 2)
    with pytest.raises(UserError, match=r"name the folder as feedback\.model"):
        FeedbackConfig(backend="folder")


def _check_plan_of_foreign_models(cfg, scorer, folder, place):
    """Each is planned with its own size, a judge that chooses without a cache, one that writes with it."""
    judge = JudgeConfig(game=None)
    wide = ModelConfig(init_from=str(folder), compute_dtype="bfloat16")
    parts = {
        (weights, mode): {row.name: row.parts for row in plan(dataclasses.replace(
            cfg, model=wide, feedback=dataclasses.replace(cfg.feedback, weights=weights, kv_cache=weights),
            judge=dataclasses.replace(judge, mode=mode),
        ), place)} for weights in ("float", "int8") for mode in ("soft", "binary")
    }  # fmt: skip
    stored = sum(4 * p.numel() for name, p in scorer.named_parameters() if name != "score.weight")
    found = parts["float", "soft"]
    assert found["rl"]["reward model"] == stored
    tensors = hf.tensors_of(folder)
    whole, matrices = (sum(t.nbytes for n, t in tensors.items() if part in n) for part in ("", "proj.weight"))
    assert found["rl_judge"]["feedback model"] == whole and "feedback cache" not in found["rl_judge"]
    assert parts["int8", "soft"]["rl_judge"]["feedback model"] == whole - matrices // 2
    cache = 2 * 3 * 2 * 768 * 2  # keys and values, layers, rows, tokens, heads
    assert parts["float", "binary"]["rl_judge"]["feedback cache"] == cache * 12 * 2
    assert parts["int8", "binary"]["rl_judge"]["feedback cache"] == cache * (12 + 4)


def test_a_judge_in_8_bits_says_nearly_the_same_in_half_the_memory(folder, tmp_path, one_device):
    llms = []
    for kind in ("float", "int8"):
        feedback = FeedbackConfig(backend="folder", model=str(folder), batch_size=2, weights=kind, kv_cache=kind)
        x = Run(_config(folder, feedback=feedback), tmp_path / "run", one_device, QUIET)
        llms.append(RunLlms(x, RunModels(x)).feedback)
    assert llms[1].name == f"{llms[0].name} int8"
    held = [sum(w.nbytes for w in jax.tree.leaves(llm._params["layers"])) for llm in llms]
    assert held[1] < 0.6 * held[0]
    requests = [LLMRequest((Message("user", f"第{i}条祝福好吗"),), max_tokens=8, temperature=0.0) for i in range(2)]
    exact, rough = (llm.choice_logprobs(requests, ["好", "不"]) for llm in llms)
    assert 0 < np.abs(exact - rough).max() < 0.3
    assert all(reply.completion_tokens > 0 for reply in llms[1].complete(requests))


def test_weights_in_8_bits_are_those_of_the_folder_on_any_mesh_also_imported(folder, tmp_path, eight_devices, one_device):
    assert main(["import", str(folder), "--out", str(tmp_path / "imported")]) == 0
    cfg = resolve(_config(folder).model)
    cfg = dataclasses.replace(cfg, param_dtype="bfloat16")
    plain = load_policy(folder, cfg, one_device)
    expected = quantise_layers(plain)
    for source, place in ((folder, one_device), (folder, eight_devices), (tmp_path / "imported", eight_devices)):
        found = load_policy(source, cfg, place, int8=True)
        assert isinstance(found["layers"]["gate"], Int8) and found["layers"]["gate"].values.dtype == np.int8
        jax.tree.map(np.testing.assert_array_equal, found, expected)
