"""Checkpoints of a training stage (Orbax, asynchronous): parameters, optimizer state, step, data position, random keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from rlaif_jax.errors import UserError


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its own preemption check.

    JAX counts every call of that check to agree on a step, so only the training loop may call it (`trainers/preemption.py`).
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """Saves and restores `step -> (params, rest of the state, meta)`; keeps the `keep_last` newest and the best by `score`.

    Saving is atomic. A save that was killed leaves only a temporary folder, which the next start removes.
    """

    def __init__(self, folder: Path, keep_last: int = 2):
        policy = keep.AnyPreservationPolicy(
            [keep.LatestN(keep_last), keep.BestN(get_metric_fn=lambda m: m["score"], reverse=False, n=1)]
        )
        self._manager = _Manager(
            Path(folder).absolute(),
            item_names=("params", "rest", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy, best_fn=lambda m: m["score"], best_mode="max", create=True
            ),
        )

    def save(self, step: int, params: Any, rest: Any, meta: dict, score: float) -> None:
        """Starts writing a checkpoint in the background. Higher `score` is better. The arrays may be donated once this returns."""
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params), rest=ocp.args.StandardSave(rest), meta=ocp.args.JsonSave(meta)
        )
        self._manager.save(step, args=args, metrics={"score": float(score)}, force=True)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def selected_step(self, select: str) -> int:
        """The step of the "last" or "best" checkpoint."""
        step = self._manager.latest_step() if select == "last" else self._manager.best_step()
        if step is None:
            raise UserError(f"no checkpoint in {self._manager.directory}: run the stage that writes it first")
        return step

    def restore(self, step: int, params: Any, rest: Any) -> tuple[Any, Any, dict]:
        """Returns (params, rest, meta). `params` and `rest` are trees of ShapeDtypeStructs with the target shardings."""
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(params), rest=ocp.args.StandardRestore(rest), meta=ocp.args.JsonRestore()
        )
        out = self._manager.restore(step, args=args)
        return out["params"], out["rest"], out["meta"]

    def restore_params(self, step: int, params: Any) -> Any:
        """Restores the parameters only."""
        args = ocp.args.Composite(params=ocp.args.StandardRestore(params))
        return self._manager.restore(step, args=args)["params"]

    def wait(self) -> None:
        """Blocks until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Blocks until everything is on disk, then ends the background threads."""
        self._manager.wait_until_finished()
        self._manager.close()
