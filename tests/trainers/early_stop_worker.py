"""What every one of two processes does in test_early_stop.py: they score alike checkpoints differently, and stop together."""

import sys
from pathlib import Path

from rlaif_jax.sharding import MeshConfig, Placement, init_distributed, make_mesh
from tests.trainers.test_early_stop import RISES_TWICE, fit

if __name__ == "__main__":
    me, folder = init_distributed(), Path(sys.argv[1])
    mine = RISES_TWICE if me.index == 0 else range(100)  # the second process alone would go on to the end
    place = Placement.of(make_mesh(MeshConfig(data=2, fsdp=1, tensor=1)))
    state, evaluated = fit(folder / "run", place, mine, patience=2)
    (folder / f"{me.index}.txt").write_text(f"{int(state.step)} {evaluated}", encoding="utf-8")
