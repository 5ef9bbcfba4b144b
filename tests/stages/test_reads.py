"""What the table says that a stage reads is all that it reads: every access to the config is recorded while the stages run."""

import dataclasses
import sys

import pytest
from rich.console import Console

from rlaif_jax.config import (
    CurateConfig,
    DataConfig,
    DpoConfig,
    FeedbackConfig,
    GameConfig,
    HttpConfig,
    JudgeConfig,
    RunConfig,
)
from rlaif_jax.config.stages import stages_of
from rlaif_jax.runs.folder import open_run
from rlaif_jax.stages import pipeline
from tests import tiny
from tests.feedback.fake_api import FakeApi

NOT_RESULTS = {"name", "mesh", "logging"}  # where a run runs and what it is called, not what it computes
SEEN: set[str] = set()


def _reader() -> str:
    """The file that asked, beyond the config classes themselves."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.endswith(("run_config.py", "sections.py", "test_reads.py")):
        frame = frame.f_back
    return frame.f_code.co_filename


class _TracedData(DataConfig):
    def __getattribute__(self, name):
        if not name.startswith("_"):
            SEEN.add(f"data.{name}")
        return super().__getattribute__(name)


class _Traced(RunConfig):
    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        # The table itself looks at every section, to see which stages there are.
        if name in {f.name for f in dataclasses.fields(RunConfig)} and not _reader().endswith("config/stages.py"):
            if name == "data":
                return value
            SEEN.add(name)
        return value


def _traced(cfg: RunConfig) -> RunConfig:
    copy, data = object.__new__(_Traced), object.__new__(_TracedData)
    copy.__dict__.update(vars(cfg))
    data.__dict__.update(vars(cfg.data))
    copy.__dict__["data"] = data
    return copy


def _covers(read: str, name: str) -> bool:
    """Whether a field that the table names is the one that was read, around it, or in it."""
    return name == read or name.startswith(f"{read}.") or read.startswith(f"{name}.")


@pytest.mark.slow
def test_every_stage_reads_no_more_than_the_table_says(tmp_path):
    api = FakeApi()
    small = tiny.config(steps=2, checkpoint_every=2)
    cfg = dataclasses.replace(
        small, feedback=FeedbackConfig(backend="http", http=HttpConfig("m", api.url, "", timeout=5.0)),
        dpo=DpoConfig(small.sft.train), curate=CurateConfig(prompts=12, source="llm", examples=2, chunk=6),
        judge=JudgeConfig("principles_general", game=GameConfig(1, 1, 1)),
    )  # fmt: skip
    run = open_run(tmp_path / "run", cfg, Console(quiet=True))
    run = dataclasses.replace(run, cfg=_traced(cfg), imports_functions=True)
    missing = {}
    for stage in stages_of(cfg).values():
        SEEN.clear()
        facts = pipeline.KINDS[stage.kind](run, stage)
        found = {name for name in SEEN if not any(_covers(read, name) for read in (*stage.reads, *NOT_RESULTS))}
        if stage.name != "report" and found:
            missing[stage.name] = sorted(found)
        run.mark_done(stage.name, 0.0, facts)
    api.close()
    assert not missing, f"read, but not named in `reads`: {missing}"
