"""Data of TPU chips, and topologies to compile for without having the chips."""

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
    """One TPU chip. Numbers are from Google's page on its version (docs.cloud.google.com/tpu/docs/v5e and so on).

    Attributes:
      memory: bytes of HBM. The compiler reserves some of it and decides what fits.
      flops: peak bf16 operations per second.
      bandwidth: HBM bytes per second.
      links: bytes per second that a chip can receive over all of its inter-chip links (half of the page's bidirectional
        figure).
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
    if found[1] == "v5e" and max(sizes) > 16:  # libtpu would abort the process
        raise UserError(f"--topology {name!r}: v5e has at most 16 chips on a side")
    wanted = 3 if found[1] in ("v4", "v5p") else 2
    if len(sizes) != wanted:
        raise UserError(f"--topology {name!r}: {found[1]} has {wanted} dimensions, for example {'x'.join('4' * wanted)}")
    return found[1], math.prod(sizes)


# Without these, libtpu asks the metadata server of a TPU VM (elsewhere it waits and then logs errors), and allows only one
# process per machine. The last two are placeholders: the topology decides what is compiled for.
_COMPILES_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}  # fmt: skip


def topology_devices(name: str) -> list[Any]:
    """The devices of a topology, to compile for. UserError if libtpu is missing or does not know the shape.

    Only for processes that compile and never run on a TPU: it sets environment variables for libtpu, unless they are set.
    """
    version, count = parse_topology(name)
    for variable, value in _COMPILES_ONLY.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # On v4, this mode makes the two cores of a chip one device. It is the default of the other versions.
    kwargs = {"chip_config_name": "megacore"} if version == "v4" else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **kwargs).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology {name!r}: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        raise UserError("the TPU compiler is not installed: pip install 'rlaif_jax[tpu-aot]'") from error
    if len(devices) != count:
        raise UserError(f"--topology {name!r}: the compiler has {len(devices)} devices for {count} chips")
    return list(devices)
