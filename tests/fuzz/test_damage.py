"""Files of a run folder are damaged at random: each time it is noticed by name, or what is read is what was written.

RLAIF_TEST_CORRUPTIONS says how many the slow test makes (default 1000).
"""

import collections
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from rlaif_jax import state_files
from rlaif_jax.config.stages import stage_of
from rlaif_jax.config.values import to_dict
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.cache import CachedLLM
from rlaif_jax.feedback.curated_items import read_items
from rlaif_jax.feedback.llm import LLMReply, LLMRequest, Message
from rlaif_jax.feedback.principles import Versions
from rlaif_jax.runs.folder import open_run
from rlaif_jax.stages import pipeline
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.metrics_log import MetricsWriter, read_metrics
from tests import tiny

QUIET = Console(quiet=True)
REQUESTS = [LLMRequest((Message("user", f"写一条祝福{i}" * 5),), max_tokens=32) for i in range(40)]
TIMES = ("commit_success.txt", "_CHECKPOINT_METADATA")  # of Orbax: when a checkpoint was saved, nothing of its state
PARAMS = {"w": jnp.arange(5000.0).reshape(50, 100), "b": jnp.ones(9, jnp.bfloat16)}


class Echo:
    """A model that answers with the length of the request."""

    name, asked = "echo", 0

    def complete(self, requests, on_reply=None):
        self.asked += len(requests)
        replies = [LLMReply(f"好的祝福 {len(r.messages[-1].content)} {r.messages[-1].content[:6]}") for r in requests]
        for i, reply in enumerate(replies):
            if on_reply:
                on_reply(i, reply)
        return replies


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run folder with state of every kind: a finished stage, a half-finished one with two checkpoints, items, rules, replies."""
    x = open_run(tmp_path_factory.mktemp("whole") / "run", tiny.config(), QUIET)
    pipeline.run(x, ["tokenizer"])
    x.mark_begun(stage_of(x.cfg, "sft"))
    with Checkpoints(x.folder("sft") / "checkpoints") as checkpoints:
        for step in (2, 4):
            params = {name: array + step for name, array in PARAMS.items()}
            checkpoints.save(step, params, {"moments": PARAMS}, {"data": {"position": step}}, 0.1 * step)
    writer = MetricsWriter(x.folder("sft"), 0)
    for step in (1, 2, 3, 4):
        writer.write(step, {"loss": 1.0 / step})
    writer.close()
    items = [{"prompt": f"给妈妈的祝福{i}", "debates": [], "pairs": [], "lost": {"cut": i % 2}} for i in range(20)]
    state_files.write_rows(x.folder("curate") / "items.jsonl", map(state_files.sealed, items))
    versions = Versions(x.folder("principles") / "principles")
    for i in range(3):
        versions.add(["不说套话", "要有画面"] * (i + 1), 0.5 + 0.1 * i, "理由", True)
    CachedLLM(Echo(), x.out / "replies.sqlite").complete(REQUESTS)
    return x.out


def _restored(out: Path) -> Any:
    """What training would go on from; None where it says that it goes on from an earlier checkpoint."""
    said: list[str] = []
    checkpoints = Checkpoints(out / "sft" / "checkpoints")
    step = checkpoints.newest_intact(said.append)
    if said:
        raise UserError(said[0])  # noticed
    params, rest, meta = checkpoints.restore(step, PARAMS, {"moments": PARAMS})
    return step, {name: np.asarray(array).tobytes() for name, array in (params | rest["moments"]).items()}, meta


def _loaded(out: Path) -> Any:
    """The parameters that a later stage would load."""
    return {k: np.asarray(v).tobytes() for k, v in Checkpoints(out / "sft" / "checkpoints").restore_params(4, PARAMS).items()}


def _rules(out: Path) -> Any:
    versions = Versions(out / "principles" / "principles")
    versions.truncate(3)
    return [versions.rules(i) for i in range(3)], versions.rows


def _replies(out: Path) -> Any:
    cache = CachedLLM(Echo(), out / "replies.sqlite")
    return [reply.text for reply in cache.complete(REQUESTS)]


def _tokenizer(out: Path) -> Any:
    open_run(out, console=QUIET).require("tokenizer")
    return "as it was"


def _begun(out: Path) -> Any:
    x = open_run(out, console=QUIET)
    x.mark_begun(stage_of(x.cfg, "sft"))
    return "as it was"


# kind: the files, as a pattern in the run's folder, and how a command reads them.
KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "config": ("config.json", lambda out: to_dict(open_run(out, console=QUIET).cfg)),
    "done mark": ("tokenizer/done.json", _tokenizer),
    "artefact": ("tokenizer/[ct]*/*", _tokenizer),
    "begun mark": ("sft/begun.json", _begun),
    "checkpoint": ("sft/checkpoints/4/**/*", _restored),
    "parameters": ("sft/checkpoints/4/params/**/*", _loaded),
    "curated items": ("curate/items.jsonl", lambda out: read_items(out / "curate" / "items.jsonl")),
    "principles": ("principles/principles/*", _rules),
    "metrics": ("sft/metrics.jsonl", lambda out: [r["step"] for r in read_metrics(out / "sft" / "metrics.jsonl")]),
    "replies": ("replies.sqlite", _replies),
}  # fmt: skip


def _damaged(content: bytes, rng: random.Random) -> bytes | None:
    """One to four flipped bits, a cut, nothing, zeros in a block, or None: the file is deleted."""
    data, kind = bytearray(content), rng.choice(("flip", "flip", "flip", "cut", "empty", "zeros", "delete"))
    if kind == "flip" and data:
        for _ in range(rng.choice((1, 1, 4))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(max(len(data), 1)) :]
    elif kind == "zeros" and data:
        at = rng.randrange(len(data))
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    return None if kind == "delete" else b"" if kind == "empty" else bytes(data)


def _outcome(kind: str, out: Path, path: Path, right: Any) -> str:
    """What became of one damage: "noticed", or "same" where what is read is right, or can be made again and is what is left."""
    try:
        found = KINDS[kind][1](out)
    except UserError as error:
        text = str(error)
        assert "\n" not in text, text
        assert str(path) in text or path.name in text or str(path.parent) in text or str(path.parents[1]) in text, (path, text)
        return "noticed"
    tail = kind in ("curated items", "metrics") and found == right[: len(found)]  # lost at the end: made again
    assert found == right or tail or (kind == "metrics" and len(found) == len(right)), (kind, path, found)
    return "same"


def _damage(whole: Path, folder: Path, count: int, seed: int) -> dict[str, collections.Counter]:
    rng, out = random.Random(seed), folder / "run"
    shutil.copytree(whole, out)
    right = {kind: read(out) for kind, (_, read) in KINDS.items()}
    outcomes: dict[str, collections.Counter] = {kind: collections.Counter() for kind in KINDS}
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        files = sorted(p for p in out.glob(KINDS[kind][0]) if p.is_file() and p.name not in TIMES)
        path = rng.choice(files)
        content = path.read_bytes()
        damaged = _damaged(content, rng)
        if damaged == content:
            continue
        path.unlink() if damaged is None else path.write_bytes(damaged)
        outcomes[kind][_outcome(kind, out, path, right[kind])] += 1
        for part in {path.relative_to(out).parts[0]}:  # a damaged checkpoint was deleted, a cache written anew
            shutil.rmtree(out / part) if (out / part).is_dir() else (out / part).unlink(missing_ok=True)
            (shutil.copytree if (whole / part).is_dir() else shutil.copy)(whole / part, out / part)
        for left in out.glob("replies.sqlite-*"):
            left.unlink()
    return outcomes


def test_sixty_damaged_files_are_noticed(whole, tmp_path):
    outcomes = _damage(whole, tmp_path, 60, seed=1)
    assert sum(sum(found.values()) for found in outcomes.values()) > 50
    for kind in ("config", "done mark", "artefact", "begun mark", "checkpoint", "parameters"):
        assert set(outcomes[kind]) == {"noticed"}, (kind, outcomes[kind])


@pytest.mark.slow
def test_a_thousand_damaged_files_are_noticed(whole, tmp_path):
    outcomes = _damage(whole, tmp_path, int(os.environ.get("RLAIF_TEST_CORRUPTIONS", "1000")), seed=2)
    print({kind: dict(found) for kind, found in outcomes.items()})
    for kind in ("checkpoint", "parameters", "artefact"):
        assert set(outcomes[kind]) == {"noticed"}, (kind, outcomes[kind])
