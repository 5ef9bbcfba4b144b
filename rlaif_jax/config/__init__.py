"""The typed configuration of a run: every section class, the loader and plain-value conversion, importable from here."""

from rlaif_jax.algorithms.advantages import AdvantageConfig
from rlaif_jax.algorithms.kl import KlConfig
from rlaif_jax.algorithms.policy import PolicyConfig
from rlaif_jax.config.load import find_config, load_config
from rlaif_jax.config.overrides import overridden
from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.sections import (
    ArmConfig,
    DataConfig,
    EvaluationConfig,
    FeedbackConfig,
    JudgeConfig,
    LoggingConfig,
    SourceConfig,
    TokenizerConfig,
)
from rlaif_jax.config.values import from_dict, to_dict
from rlaif_jax.data.corpus.build import CorpusConfig
from rlaif_jax.feedback.curate import CurateConfig
from rlaif_jax.feedback.http_config import HttpConfig
from rlaif_jax.feedback.principle_game import GameConfig
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig, preset
from rlaif_jax.rewards.function import FunctionConfig
from rlaif_jax.rewards.rules import RuleConfig
from rlaif_jax.sampling.filters import SamplingConfig
from rlaif_jax.sharding.mesh import MeshConfig
from rlaif_jax.trainers.config import CriticConfig, DpoConfig, RewardConfig, RlConfig, SftConfig, ShapingConfig, TrainConfig
from rlaif_jax.trainers.optimizer import OptimizerConfig

__all__ = [
    "AdvantageConfig", "ArmConfig", "CorpusConfig", "CriticConfig", "CurateConfig", "DataConfig", "DpoConfig",
    "EvaluationConfig", "FeedbackConfig", "FunctionConfig", "GameConfig", "HttpConfig", "JudgeConfig", "KlConfig",
    "LoggingConfig", "LoraConfig", "MeshConfig", "ModelConfig", "OptimizerConfig", "PolicyConfig", "RewardConfig", "RlConfig",
    "RuleConfig", "RunConfig", "SamplingConfig", "SftConfig", "ShapingConfig", "SourceConfig", "TokenizerConfig", "TrainConfig",
    "find_config", "from_dict", "load_config", "overridden", "preset", "to_dict",
]  # fmt: skip
