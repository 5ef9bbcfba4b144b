"""rlaif_jax: reinforcement learning from AI feedback for small language models, in JAX.

    import rlaif_jax as rj

    cfg = rj.load_config("greetings_demo", ["rl.train.steps=20"])
    run = rj.open_run("runs/demo", cfg)
    rj.run(run)                                             # every stage; or rj.run(run, ["tokenizer", "sft"])
    print(rj.ChatModel.of_run(run, "rl").answer(["A birthday wish for my mother"]))
    rj.export(run, "rl", "my-policy")

Importing the package starts nothing and sets no flag; each name below is imported when it is first used. `rlaif_jax.config` has
every section of a config, `rlaif_jax.sharding` the sharding utilities. To read the code, start at `rlaif_jax.config.stages` (the
stages of a run) or `rlaif_jax.trainers.rl` (one reinforcement-learning step).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif_jax.commands.answer_file import answer_file
    from rlaif_jax.commands.export import export, export_adapter
    from rlaif_jax.commands.import_model import import_model
    from rlaif_jax.commands.judge_score import score_file
    from rlaif_jax.commands.notebook import watch
    from rlaif_jax.config import ArmConfig, FunctionConfig, RunConfig, load_config
    from rlaif_jax.errors import UserError
    from rlaif_jax.rewards.base import RewardFn, RewardResult, Sample
    from rlaif_jax.runs.chat_model import ChatModel
    from rlaif_jax.runs.folder import Run, open_run
    from rlaif_jax.sampling.filters import SamplingConfig
    from rlaif_jax.stages.pipeline import run

__version__ = "0.1.0"
_HOMES = {
    "ArmConfig": "config", "ChatModel": "runs.chat_model", "FunctionConfig": "config", "RewardFn": "rewards.base",
    "RewardResult": "rewards.base", "Run": "runs.folder", "RunConfig": "config", "Sample": "rewards.base",
    "SamplingConfig": "sampling.filters", "UserError": "errors", "answer_file": "commands.answer_file",
    "export": "commands.export", "export_adapter": "commands.export", "import_model": "commands.import_model",
    "load_config": "config", "open_run": "runs.folder", "run": "stages.pipeline", "score_file": "commands.judge_score",
    "watch": "commands.notebook",
}  # fmt: skip
__all__ = [
    "ArmConfig", "ChatModel", "FunctionConfig", "RewardFn", "RewardResult", "Run", "RunConfig", "Sample", "SamplingConfig",
    "UserError", "__version__", "answer_file", "export", "export_adapter", "import_model", "load_config", "open_run", "run",
    "score_file", "watch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlaif_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlaif_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
