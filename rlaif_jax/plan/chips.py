"""What one TPU chip offers, and topologies that the compiler knows without having the chips."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

import jax

from rlaif_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, from Google's page of each TPU version (docs.cloud.google.com/tpu/docs/v5e and so on).

    Attributes:
      memory: bytes of HBM. The compiler keeps some for itself and has the last word on what fits.
      flops: bf16 operations per second at peak.
      bandwidth: bytes per second between HBM and the chip.
      links: bytes per second that a chip can receive over all its inter-chip links together (half the page's
        bidirectional figure).
    """

    memory: int
    flops: float
    bandwidth: float
    links: float


CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1228e9, 300e9),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * 2**30, 918e12, 1638e9, 400e9),
}


def parse_topology(name: str) -> tuple[str, int]:
    """("v5e", 64) of "v5e:8x8": the version and the number of chips."""
    found = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", name)
    if not found or found[1] not in CHIPS:
        raise UserError(f"--topology {name!r}: expected VERSION:SHAPE, for example v5e:8x8; versions: {', '.join(CHIPS)}")
    sizes = [int(size) for size in found[2].split("x")]
    if found[1] == "v5e" and max(sizes) > 16:  # libtpu ends the process
        raise UserError(f"--topology {name!r}: v5e has at most 16 chips on a side")
    wanted = 3 if found[1] in ("v4", "v5p") else 2
    if len(sizes) != wanted:
        raise UserError(f"--topology {name!r}: {found[1]} has {wanted} dimensions, for example {'x'.join('4' * wanted)}")
    return found[1], math.prod(sizes)


# libtpu would ask the metadata server of a TPU VM and elsewhere wait for an answer, complain that it got none, and let in one
# process of a machine alone, since a TPU has one owner. The names are placeholders: the topology says what is compiled for.
_COMPILES_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}  # fmt: skip


def topology_devices(name: str) -> list[Any]:
    """The devices of a topology, to compile for. UserError where libtpu is missing or knows no such shape.

    For a process that only compiles: it tells libtpu so through the environment, where that says nothing else.
    """
    version, count = parse_topology(name)
    for variable, value in _COMPILES_ONLY.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # v4 has two cores per chip that work as one in this mode; the other versions have it by default.
    kwargs = {"chip_config_name": "megacore"} if version == "v4" else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **kwargs).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology {name!r}: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        raise UserError("the TPU compiler is not installed: pip install 'rlaif_jax[tpu-aot]'") from error
    if len(devices) != count:
        raise UserError(f"--topology {name!r}: the compiler gives {len(devices)} devices for {count} chips")
    return list(devices)
