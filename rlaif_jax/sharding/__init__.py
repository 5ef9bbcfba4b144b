"""Sharding tools: meshes, logical axis rules, shardings of parameter trees, resharding. Any JAX project can use this package
without the rest of rlaif_jax; see docs/sharding.md.

    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
    place = Placement(mesh)
    shardings = place.tree(logical_axes, abstract_params)
    params = jax.jit(init, out_shardings=shardings)(key)

Importing the package sets no flag and starts no backend.
"""

from rlaif_jax.errors import UserError
from rlaif_jax.sharding.describe import Description, describe
from rlaif_jax.sharding.distributed import Processes, init_distributed
from rlaif_jax.sharding.hosts import all_values, barrier, broadcast, connect, is_first, on_first
from rlaif_jax.sharding.memory_estimate import Memory, bytes_per_device, estimate, sharded_bytes
from rlaif_jax.sharding.mesh import MeshConfig, abstract_mesh, make_mesh
from rlaif_jax.sharding.move import gather, gather_each, reshard, shard
from rlaif_jax.sharding.optimizer import optimizer_shardings
from rlaif_jax.sharding.picture import draw
from rlaif_jax.sharding.placement import Placement, constrain, global_batch, host_rows, local_rows, sharded_init
from rlaif_jax.sharding.rules import DEFAULT_RULES, RULE_SETS, Repair, Rules, spec_for
from rlaif_jax.sharding.trees import Coverage, axes_by_pattern, axes_of, coverage, named_leaves

__all__ = [
    "DEFAULT_RULES", "RULE_SETS", "Coverage", "Description", "Memory", "MeshConfig", "Placement", "Processes", "Repair", "Rules",
    "UserError",
    "abstract_mesh", "all_values", "axes_by_pattern", "axes_of", "barrier", "broadcast", "bytes_per_device", "connect",
    "constrain", "coverage", "describe", "draw", "estimate", "gather", "gather_each", "global_batch", "host_rows",
    "init_distributed", "is_first", "local_rows", "make_mesh", "named_leaves", "on_first", "optimizer_shardings", "reshard",
    "shard", "sharded_bytes", "sharded_init", "spec_for",
]  # fmt: skip
