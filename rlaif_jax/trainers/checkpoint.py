"""Checkpoints of a training stage (Orbax, asynchronous): parameters, optimizer state, step, data position, random keys.

Each has `sums.json`, the checksums of its files, which is written before the checkpoint becomes visible. A checkpoint of an
earlier version has none and is loaded unchecked.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from rlaif_jax import state_files
from rlaif_jax.errors import UserError
from rlaif_jax.sharding import on_first

_SUMS = "sums.json"
_TIMES = "_CHECKPOINT_METADATA"
_UNCHECKED = (_SUMS, _TIMES, "commit_success.txt")  # Orbax writes the latter two after the checksums; they hold times, no state


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record is to be shown: not the tracebacks of a failing save, since the error itself arrives in `wait`."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not (f"orbax{os.sep}checkpoint" in record.pathname or str(error) == "Event loop is closed")


for _name in ("absl", "concurrent.futures"):
    logging.getLogger(_name).addFilter(_is_news)


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its own preemption check.

    JAX counts every call of that check to agree on a step, so only the training loop may call it (`trainers/preemption.py`).
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """Saves and restores `step -> (params, rest of the state, meta)`; keeps the `keep_last` newest and the best by `score`.

    Saving is atomic. A save that was killed leaves only a temporary folder, which the next save removes.
    """

    def __init__(self, folder: Path, keep_last: int = 2):
        self.folder, self._keep_last, self._saving = Path(folder).absolute(), keep_last, 0

    @functools.cached_property
    def _manager(self) -> _Manager:
        """What writes. It reads the scores of all checkpoints of the folder, so they must be intact."""
        policy = keep.AnyPreservationPolicy(
            [keep.LatestN(self._keep_last), keep.BestN(get_metric_fn=lambda m: m["score"], reverse=False, n=1)]
        )
        return _Manager(
            self.folder,
            item_names=("params", "rest", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy, best_fn=lambda m: m["score"], best_mode="max", create=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
            ),
        )  # fmt: skip

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        """Closes. After an error inside, a failing save is no second one."""
        with contextlib.suppress(*[UserError] if kind else []):
            self.close()

    def _write_sums(self) -> None:
        """Orbax calls this when all files of a checkpoint are written, before it becomes visible by its name."""
        if jax.process_index() == 0:
            named = [self.folder / str(self._saving)]  # on a file system without atomic renames
            part = max(self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"), default=named[0], key=lambda p: p.stat().st_mtime)
            state_files.write_json(part / _SUMS, state_files.digests(part, _UNCHECKED))

    def save(self, step: int, params: Any, rest: Any, meta: dict, score: float) -> None:
        """Starts writing a checkpoint in the background. Higher `score` is better. The arrays may be donated once this returns."""
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params), rest=ocp.args.StandardSave(rest), meta=ocp.args.JsonSave({**meta, "sums": True})
        )
        self.wait()
        self._saving = step
        with _in_one_line(f"checkpoint {step} cannot be written to {self.folder}"):
            self._manager.save(step, args=args, metrics={"score": float(score)}, force=True)

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending."""
        return sorted(ocp.path.step.checkpoint_steps(self.folder))

    def damage(self, step: int, *parts: str) -> str:
        """What is wrong with the files of a checkpoint, or of these parts of it ("params", "rest", "meta"); "" if nothing is."""
        here, others = self.folder / str(step), {"params", "rest", "meta"} - {*parts} if parts else set()
        try:
            if not (here / _SUMS).exists():
                meta = state_files.read_json(here / "meta" / "metadata")
                return f"{here / _SUMS} is missing" if isinstance(meta, dict) and meta.get("sums") else ""
            sums, _ = (state_files.read_json(here / name) for name in (_SUMS, _TIMES))
        except UserError as error:
            return str(error)
        if not isinstance(sums, dict):
            return f"{here / _SUMS} is damaged: expected a JSON object"
        expected = {name: value for name, value in sums.items() if name.split("/")[0] not in others}
        return state_files.difference(here, expected, state_files.digests(here, {*_UNCHECKED, *others}))

    def newest_intact(self, say: Callable[[str], None]) -> int | None:
        """The newest checkpoint to go on from, or None if there is none. Damaged ones are deleted, with one line for each.

        UserError if all are damaged.
        """
        found, lines = on_first(self._newest_intact, "checkpoint")
        for line in lines:
            say(line)
        return found

    def _newest_intact(self) -> tuple[int | None, list[str]]:
        steps, damaged, found = self.steps(), {}, None
        for step in reversed(steps):  # of those before the one to go on from, only the score is needed
            damage = self.damage(step) if found is None else self.damage(step, "meta")
            found = step if found is None and not damage else found
            damaged |= {step: damage} if damage else {}
        if damaged and found is None:
            raise UserError(
                f"{next(iter(damaged.values()))}, and no checkpoint in {self.folder} is intact. Restore it, or delete the folder "
                f"{self.folder.parent} to train this stage from its start"
            )
        for step in damaged:
            with state_files.writing(self.folder / str(step)):
                shutil.rmtree(self.folder / str(step))
        went = f"training goes on from checkpoint {found}"
        return found, [f"checkpoint {step} was damaged and is deleted ({why}); {went}" for step, why in damaged.items()]

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return max(self.steps(), default=None)

    def selected_step(self, select: str) -> int:
        """The step of the "last" or "best" checkpoint; of equal scores the later one."""
        steps = self.steps()
        if not steps:
            marker = self.folder.parent / "done.json"
            how = f"delete {marker} and run that stage again" if marker.exists() else "run the stage that writes it first"
            raise UserError(f"no checkpoint in {self.folder}: {how}")
        return steps[-1] if select == "last" else max(steps, key=lambda step: (self._score(step), step))

    def _score(self, step: int) -> float:
        score = float(state_files.read_json(self.folder / str(step) / "metrics" / "metrics")["score"])
        return -math.inf if math.isnan(score) else score

    def restore(self, step: int, params: Any, rest: Any) -> tuple[Any, Any, dict]:
        """Returns (params, rest, meta). `params` and `rest` are trees of ShapeDtypeStructs with the target shardings."""
        meta = state_files.read_json(self.folder / str(step) / "meta" / "metadata")
        return self._restored(step, "params", params), self._restored(step, "rest", rest), meta

    def restore_params(self, step: int, params: Any) -> Any:
        """Restores the parameters only. UserError if they are damaged."""
        if damage := on_first(lambda: self.damage(step, "params"), "checkpoint"):
            marker = self.folder.parent / "done.json"
            raise UserError(
                f"{damage}. Restore it; or delete {marker}, and the next `rlaif run` trains on from the last intact checkpoint"
            )
        return self._restored(step, "params", params)

    def _restored(self, step: int, item: str, wanted: Any) -> Any:
        with _in_one_line(f"{self.folder / str(step) / item} cannot be read"), ocp.StandardCheckpointer() as reader:
            return reader.restore(self.folder / str(step) / item, wanted)

    def wait(self) -> None:
        """Blocks until everything is on disk."""
        if "_manager" in self.__dict__:
            with _in_one_line(f"checkpoint {self._saving} cannot be written to {self.folder}"):
                self._manager.wait_until_finished()
                self._manager.check_for_errors()

    def close(self) -> None:
        """Blocks until everything is on disk, then ends the background threads."""
        self.wait()
        if "_manager" in self.__dict__:
            self._manager.close()


@contextlib.contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Any error inside becomes a UserError of one line: the library raises many types, with pages of text."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        full = any(mark in text for mark in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC", "Disk quota"))
        why = "the disk is full; free some space and start the same command again" if full else " ".join(text.split())[:300]
        raise UserError(f"{what}: {why}") from error
