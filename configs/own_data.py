r"""Your own data in CSV files, a judge behind a chat API, English texts. Copy this file, change the lines with "<--", then

    cp configs/own_data.py own_data.py
    export OPENAI_API_KEY=...
    rlaif check own_data.py                 # data, judge (one real call), memory: seconds, trains nothing
    rlaif run own_data.py --out runs/mine

docs/data.md shows all forms that the files may have. As it is, the policy is a small model from scratch, for a first try on a
laptop. For real use name a Hugging Face folder:

    rlaif run own_data.py --out runs/mine --set model.init_from=/path/to/Qwen2.5-0.5B-Instruct --set 'lora={}'

The run: SFT on your examples, then two arms. Arm A, "rl": the policy writes candidates for your prompts, the API debates them, a
reward model learns from the accepted and rejected ones, and GRPO maximises its score. Arm B, "rl_judge": the API rates every
answer by your principles, and GRPO maximises that. The report compares both with SFT on prompts that no stage has seen.
"""

from rlaif_jax.config import (
    CurateConfig,
    DataConfig,
    EvaluationConfig,
    FeedbackConfig,
    HttpConfig,
    JudgeConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RlConfig,
    RunConfig,
    SamplingConfig,
    SftConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)  # fmt: skip


def config() -> RunConfig:
    """SFT, curated preferences, a reward model and two arms."""
    sampling = SamplingConfig(temperature=1.0, max_tokens=64)  # <-- the longest answer, in tokens
    data = DataConfig(
        root="data",  # <-- the folder of the files
        prompts=SourceConfig("prompts.csv"),  # column prompt
        eval_prompts=SourceConfig("eval_prompts.csv"),  # column prompt; other prompts than those above
        sft=SourceConfig("sft.csv"),  # columns prompt, response; other names: columns={"prompt": "question", "response": "answer"}
        sft_eval=SourceConfig(),  # no file: the last 5 % of the prompts of sft.csv are held out
        pairs_eval=SourceConfig(),  # no file: a share of the curated pairs is held out
    )
    api = HttpConfig(
        model="gpt-4.1-mini",  # <-- the model, and base_url="https://HOST/v1" for any other server that speaks this protocol
        price_prompt=0.4, price_completion=1.6,  # <-- your provider's prices per million tokens
        budget=5.0,  # <-- the run stops before it would spend more
    )  # fmt: skip
    return RunConfig(
        name="own_data",
        language="en",
        data=data,
        tokenizer=TokenizerConfig(vocab_size=2048),
        model=ModelConfig(),  # 1M parameters, from random weights; with model.init_from, those of the folder
        sft=SftConfig(TrainConfig(steps=300, batch_size=16, checkpoint_every=100, optimizer=OptimizerConfig(1e-3)), max_length=192),
        feedback=FeedbackConfig(backend="http", http=api),
        curate=CurateConfig(prompts=100, candidates=4, max_tokens=64),
        reward=RewardConfig(
            TrainConfig(steps=200, batch_size=16, checkpoint_every=100, optimizer=OptimizerConfig(5e-4)), max_length=192
        ),
        # principles: a file with one rule per line, such as "The tagline names the product." <--
        # mode soft needs a server that returns top_logprobs; binary and k_vote work with any.
        # game=GameConfig() improves the principles first; it reads labelled answers (data.labelled, docs/data.md).
        judge=JudgeConfig(principles="principles_general", mode="soft", game=None),
        rl=RlConfig(
            TrainConfig(steps=40, batch_size=8, checkpoint_every=20, log_every=2, optimizer=OptimizerConfig(1e-4)),
            group_size=4, sampling=sampling, max_prompt_tokens=96,
        ),
        evaluation=EvaluationConfig(batch_size=16, sampling=sampling),
    )  # fmt: skip
