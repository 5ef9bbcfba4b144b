"""rlaif_jax: reinforcement learning from AI feedback for small language models, in JAX.

Importing the package starts nothing and sets no flag. Start reading at `rlaif_jax.stages.pipeline` (the stages of one
experiment) or `rlaif_jax.trainers.rl` (one reinforcement-learning step).
"""

__version__ = "0.1.0"
