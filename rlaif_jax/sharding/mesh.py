"""Device meshes. Batches are sharded over data and fsdp; parameters over fsdp and tensor (heads, ffn, vocabulary).

Fast links join the devices of one granule (a TPU slice, or a process with its GPUs); slower ones join granules (the
data-center network, DCN). With several granules, an axis has an outer part, which crosses granules, and an inner part, which
stays inside one:

    data = dcn_data x (data inside a granule),   fsdp = dcn_fsdp x (fsdp inside a granule)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from rlaif_jax.errors import UserError
from rlaif_jax.ranges import Range, check_fields
from rlaif_jax.sharding.rules import RULE_SETS

AXES = ("data", "fsdp", "tensor", "context")
Size = Annotated[int, Range(1, 2**20, also=-1)]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes. At most one may be -1, which means "all remaining devices".

    Attributes:
      data: shards rows; parameters are replicated over it.
      fsdp: shards rows and parameters.
      tensor: shards heads, ffn and vocabulary (tensor parallelism).
      context: reserved; must be 1.
      dcn_data, dcn_fsdp: the parts of data and fsdp that cross granules. dcn_data -1 = number of granules / dcn_fsdp.
      granule: slice, process or auto. auto: slices if there are several; else processes if a dcn size is above 1; else all
        devices are one granule.
      rules: the rule set of the parameters, a name in `RULE_SETS`.
    """

    data: Size = -1
    fsdp: Size = 1
    tensor: Size = 1
    context: Annotated[int, Range(1, 1)] = 1
    dcn_data: Size = -1
    dcn_fsdp: Size = 1
    granule: str = "auto"
    rules: str = "default"

    def __post_init__(self):
        check_fields(self)
        _check_granule(self.granule)
        if self.rules not in RULE_SETS:
            raise UserError(f"mesh.rules is {self.rules!r}; expected one of {', '.join(RULE_SETS)}")

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Axis sizes for this number of devices; UserError if the mesh does not use all of them."""
        if self.context != 1:
            raise UserError("mesh.context is reserved and must be 1: sharding of sequences is not implemented")
        return tuple(fill_sizes({axis: getattr(self, axis) for axis in AXES}, devices).values())

    @property
    def dcn(self) -> dict[str, int]:
        """The `dcn` argument of `make_mesh`: the parts of the axes that cross granules."""
        return {"data": self.dcn_data, "fsdp": self.dcn_fsdp}


def _check_granule(granule: str) -> None:
    if granule not in ("auto", "slice", "process"):
        raise UserError(f"mesh.granule is {granule!r}; expected auto, slice or process")


def fill_sizes(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
    """Replaces a -1 by the number of remaining devices; UserError unless the sizes then use every device."""
    sizes = dict(sizes)
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if any(s < 1 and s != -1 for s in sizes.values()) or len(open_axes) > 1:
        raise UserError(f"mesh {sizes}: sizes are >= 1, and at most one is -1")
    filled = dict(sizes)
    for axis in open_axes:
        filled[axis] = max(devices // math.prod(s for s in sizes.values() if s != -1), 1)
    if math.prod(filled.values()) != devices:
        raise UserError(f"mesh {filled} needs {math.prod(filled.values())} devices, but there are {devices}")
    return filled


def make_mesh(
    cfg: MeshConfig | Mapping[str, int], devices: Sequence[Any] | None = None, *, dcn: Mapping[str, int] | None = None,
    granule: str = "auto",
) -> Mesh:  # fmt: skip
    """Makes a mesh over `devices` (default: all). Axes are Auto: the compiler shards what has no constraint.

    `cfg` is a MeshConfig, or axis name -> size for your own axes. With your own axes, `dcn` gives the parts that cross
    granules (default: the first axis crosses all of them), and `granule` is as in MeshConfig.
    """
    devices = list(jax.devices() if devices is None else devices)
    if isinstance(cfg, MeshConfig):
        sizes, dcn, granule = dict(zip(AXES, cfg.sizes(len(devices)), strict=True)), cfg.dcn, cfg.granule
    else:
        if not cfg:
            raise UserError("a mesh needs at least one axis, for example {'data': -1}")
        sizes = fill_sizes(cfg, len(devices))
        dcn = {next(iter(sizes)): -1} if dcn is None else dcn
    groups = granules(devices, granule, wanted=any(s > 1 for s in dcn.values()))
    outer = dcn_sizes(sizes, dcn, len(groups))
    types = (AxisType.Auto,) * len(sizes)
    if len(groups) == 1:
        try:
            return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)
        except NotImplementedError:  # a mesh axis does not fit the physical axes of the TPU: allow splitting them
            cut = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
            return Mesh(cut, tuple(sizes), axis_types=types)
    return Mesh(_hybrid(sizes, outer, groups), tuple(sizes), axis_types=types)


def abstract_mesh(cfg: MeshConfig | Mapping[str, int], devices: int) -> AbstractMesh:
    """A mesh without real devices, of any size: for specs, memory estimates and tables."""
    wanted = {axis: getattr(cfg, axis) for axis in AXES} if isinstance(cfg, MeshConfig) else cfg
    sizes = fill_sizes(wanted, devices)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def granules(devices: Sequence[Any], granule: str = "auto", wanted: bool = False) -> list[list[Any]]:
    """The devices grouped by slice or process, in order.

    "auto" groups by slice if there are several, else by process if `wanted`, else it makes one group. UserError if the groups
    differ in size, and for an unknown `granule`.
    """
    _check_granule(granule)
    by_slice = _grouped(devices, "slice_index")
    if granule == "auto" and len(by_slice) == 1 and not wanted:
        return [list(devices)]
    slices = granule == "slice" or (granule == "auto" and len(by_slice) > 1)
    groups = by_slice if slices else _grouped(devices, "process_index")
    if len({len(g) for g in groups}) > 1:
        raise UserError(f"the granules have {[len(g) for g in groups]} devices; a mesh needs the same number in each")
    return groups


def _grouped(devices: Sequence[Any], attribute: str) -> list[list[Any]]:
    groups: dict[int, list[Any]] = {}
    for device in devices:  # CPU devices have no slice_index
        groups.setdefault(getattr(device, attribute, 0) or 0, []).append(device)
    return [groups[key] for key in sorted(groups)]


def dcn_sizes(sizes: Mapping[str, int], dcn: Mapping[str, int], count: int) -> dict[str, int]:
    """The outer part of each axis, for `count` granules; fills in a -1 in `dcn`. UserError if the sizes do not fit."""
    outer = {axis: 1 for axis in sizes} | fill_dcn(dcn, count)
    for axis, size in outer.items():
        if axis not in sizes:
            raise UserError(f"dcn names the axis {axis!r}; the mesh has {', '.join(sizes)}")
        if sizes[axis] % size:
            raise UserError(
                f"mesh axis {axis} of size {sizes[axis]} cannot be split over {size} granules (slices or hosts); "
                f"set the dcn sizes (dcn_data, dcn_fsdp) so that their product is {count} and each divides its axis"
            )
    return outer


def fill_dcn(dcn: Mapping[str, int], count: int) -> dict[str, int]:
    """Fills in a -1 in `dcn`, so that the product is the number of granules."""
    try:
        return fill_sizes(dcn, count)
    except UserError as error:
        raise UserError(f"dcn sizes {dict(dcn)}: their product must be {count}, the number of granules") from error


def _hybrid(sizes: Mapping[str, int], outer: Mapping[str, int], groups: list[list[Any]]) -> np.ndarray:
    """The device array of a mesh over several granules: each granule is a block, with its devices in their best order."""
    inner = tuple(size // outer[axis] for axis, size in sizes.items())
    blocks = [mesh_utils.create_device_mesh(inner, g, allow_split_physical_axes=True) for g in groups]
    stacked = np.stack(blocks).reshape(*outer.values(), *inner)
    rank = len(sizes)
    pairs = [axis for i in range(rank) for axis in (i, rank + i)]  # outer 0, inner 0, outer 1, ...
    return stacked.transpose(pairs).reshape(tuple(sizes.values()))
