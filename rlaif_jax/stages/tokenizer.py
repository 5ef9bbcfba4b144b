"""The first stage: the bundled corpus where no data is given, and the run's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif_jax.config.stages import Stage
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run
from rlaif_jax.sharding import on_first


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """Writes the corpus, trains or copies the tokenizer; process 0 alone does."""
    data = RunData(x)

    def make() -> dict[str, Any]:
        return data.prepare() | {"tokens": data.make_tokenizer().vocab_size}

    return on_first(make, stage.name)
