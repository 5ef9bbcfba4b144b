"""Checkpoints of a training stage (Orbax, asynchronous): parameters, optimiser and step, data position, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from rlaif_jax.errors import UserError


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, but for its own questions whether the run is to stop: JAX's agreement on a step counts every call,
    and the training loop alone asks (`trainers/preemption.py`)."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """Saves and restores `step -> (params, rest of the state, meta)`; keeps the last few and the best by `score`.

    A killed save leaves only a temporary folder, which the next start removes: a step is there whole or not at all.
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
        """Starts to write a checkpoint; higher `score` is better. Arrays may be donated once this returns."""
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params), rest=ocp.args.StandardSave(rest), meta=ocp.args.JsonSave(meta)
        )
        self._manager.save(step, args=args, metrics={"score": float(score)}, force=True)

    def latest_step(self) -> int | None:
        """The newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def selected_step(self, select: str) -> int:
        """The step of the "last" or "best" checkpoint."""
        step = self._manager.latest_step() if select == "last" else self._manager.best_step()
        if step is None:
            raise UserError(f"no checkpoint in {self._manager.directory}: run the stage that writes it first")
        return step

    def restore(self, step: int, params: Any, rest: Any) -> tuple[Any, Any, dict]:
        """(params, rest, meta); the arguments are trees of ShapeDtypeStructs with the shardings that are wanted."""
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(params), rest=ocp.args.StandardRestore(rest), meta=ocp.args.JsonRestore()
        )
        out = self._manager.restore(step, args=args)
        return out["params"], out["rest"], out["meta"]

    def restore_params(self, step: int, params: Any) -> Any:
        """Parameters alone."""
        args = ocp.args.Composite(params=ocp.args.StandardRestore(params))
        return self._manager.restore(step, args=args)["params"]

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and ends the background threads."""
        self._manager.wait_until_finished()
        self._manager.close()
