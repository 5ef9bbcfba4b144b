"""Seeds by name: each use of randomness has its own, the same at every start."""

import numpy as np

from rlaif_jax.data.streams import stream


def test_streams_differ_by_name_and_by_seed_and_stay_the_same():
    names = ("sft/rows", "reward/rows", "grader/rows", "rl/rollout", "rl/minibatches", "evaluate")
    found = {stream(seed, name) for seed in range(200) for name in names}
    assert len(found) == 200 * len(names) and all(0 <= s < 2**31 for s in found)
    assert stream(3, "reward/rows") != stream(2, "grader/rows"), "with offsets, these two were equal"
    assert stream(0, "rl/rollout") == 2078918244 and np.uint32(stream(1, "evaluate")) == stream(1, "evaluate")
