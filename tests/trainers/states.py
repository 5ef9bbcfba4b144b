"""States made and checkpoints read as only tests need to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
import orbax.checkpoint as ocp

from rlaif_jax.sharding import Placement
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.update import TrainState, state_of


def create_state(
    init_params: Callable[[], Any], axes: Any, optimizer: optax.GradientTransformation, place: Placement
) -> tuple[TrainState, TrainState]:
    """A sharded state of fresh parameters, and the tree of its shardings."""
    shardings = place.tree(axes, jax.eval_shape(init_params))
    return state_of(jax.jit(init_params, out_shardings=shardings)(), axes, optimizer, place)


def restore_all(folder: Path) -> tuple[int, dict[str, Any]]:
    """The newest step of a folder of checkpoints, and all that was saved there: {"params", "rest", "meta"}.

    Arrays have the shardings that they had; on other devices or processes, they are on this process's first device.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    args = ocp.args.Composite(
        params=ocp.args.StandardRestore(fallback_sharding=here), rest=ocp.args.StandardRestore(fallback_sharding=here),
        meta=ocp.args.JsonRestore(),
    )  # fmt: skip
    checkpoints = Checkpoints(folder)
    step = checkpoints.latest_step()
    found = dict(checkpoints._manager.restore(step, args=args))
    checkpoints.close()
    return step, found
