r"""From a Hugging Face folder to a Hugging Face folder: LoRA over Qwen2.5-7B-Instruct (or any model that is read) on one device.

    rlaif run configs/greetings_lora.py --set model.init_from=/path/to/Qwen2.5-7B-Instruct --out runs/qwen --dry-run
    rlaif run configs/greetings_lora.py --set model.init_from=/path/to/Qwen2.5-7B-Instruct --out runs/qwen
    rlaif export runs/qwen --stage rl --out qwen-greetings

Adapters of rank 16 on every matrix of the blocks: SFT, reward model, then the paper's GRPO (32 prompts x 4, 256 + 512 tokens),
in which one frozen base serves policy, reference and reward model. The data are the bundled corpus; for your own, set
`--set data.root=FOLDER` (docs/usage.md describes the formats). To skip SFT: `--set sft=none`. Several devices: `--set mesh.fsdp=N`.
`--dry-run` estimates 43 GiB for 7B on one device; not run on a GPU yet.
"""

import dataclasses

from rlaif_jax.config import (
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RlConfig,
    RunConfig,
    SamplingConfig,
    SftConfig,
    TrainConfig,
)  # fmt: skip


def config() -> RunConfig:
    """Three stages of adapters, and the comparison of base, SFT and RL."""
    sampling = SamplingConfig(temperature=1.0, max_tokens=512)
    train = TrainConfig(
        steps=200, batch_size=32, grad_accumulation=4, checkpoint_every=50, log_every=1, optimizer=OptimizerConfig(2e-4)
    )
    rl = dataclasses.replace(train, optimizer=OptimizerConfig(1e-5, "constant"))
    return RunConfig(
        name="greetings_lora",
        data=DataConfig(corpus=CorpusConfig(eval_prompts=200)),
        model=ModelConfig(param_dtype="bfloat16", compute_dtype="bfloat16", remat="full", logit_chunk=128),
        lora=LoraConfig({"layers/(q|k|v|o|gate|up|down)": 16}, alpha=32.0),
        sft=SftConfig(train, max_length=768),
        reward=RewardConfig(train, max_length=768),
        rl=RlConfig(
            rl, group_size=4, num_minibatches=2, max_prompt_tokens=256, sampling=sampling, samples_every=10, eval_prompts=32
        ),
        evaluation=EvaluationConfig(batch_size=32, sampling=sampling),
    )
