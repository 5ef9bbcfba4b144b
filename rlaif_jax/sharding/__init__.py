"""Mesh, rules and placement of parameter trees; usable alone by other JAX projects.

    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
    place = Placement(mesh)
    shardings = place.tree(logical_axes, abstract_params)
    params = jax.jit(init, out_shardings=shardings)(key)
"""

from rlaif_jax.sharding.mesh import MeshConfig, make_mesh
from rlaif_jax.sharding.placement import Placement, constrain, global_batch
from rlaif_jax.sharding.plan import bytes_per_device
from rlaif_jax.sharding.rules import DEFAULT_RULES, Repair, Rules, spec_for

__all__ = [
    "DEFAULT_RULES", "MeshConfig", "Placement", "Repair", "Rules", "bytes_per_device", "constrain", "global_batch",
    "make_mesh", "spec_for",
]  # fmt: skip
