"""One call that makes several processes one program: on Cloud TPU, on hosts with GPUs, or on this machine alone.

    init_distributed()        # before anything else touches a device; with one process it does nothing
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from rlaif_jax.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which process this is, of how many, and what said so: "one", "variables", "slurm" or "tpu"."""

    index: int
    count: int
    source: str


def init_distributed(
    timeout: int = 300, env: Mapping[str, str] | None = None, say: Callable[[str], None] = lambda text: None
) -> Processes:
    """Joins the processes of this program, as the environment says; see `settings`. Waits `timeout` seconds for the others.

    If they do not come, JAX aborts the process and cannot be kept from it; so `say` is told before the waiting begins.
    Several processes on CPU devices talk through gloo, and compile what they run: whether a program that is read back from a
    cache on disk keeps the order of its collectives has not been checked. UserError for variables that make no sense.
    """
    env = os.environ if env is None else env
    source, found = settings(env, on_tpu_host())
    if source == "one":
        return Processes(0, 1, source)
    if found.get("process_id") == 0:
        _require_free(found["coordinator_address"])
        say(f"waits at {found['coordinator_address']} for {found['num_processes'] - 1} other processes, at most {timeout} s")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The last barrier of a process that leaves: one that met a mistake alone must not wait for the others for long.
    jax.distributed.initialize(**found, initialization_timeout=timeout, shutdown_timeout_seconds=60)
    if jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
    return Processes(jax.process_index(), jax.process_count(), source)


def settings(env: Mapping[str, str], tpu: bool) -> tuple[str, dict[str, Any]]:
    """(source, arguments of jax.distributed.initialize), the first of these that applies:

    * "variables": JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID.
    * "slurm": inside `srun` with more than one task. With one task on each node it takes all of the node's GPUs
      (SLURM_GPUS_ON_NODE); with several, one each, as JAX does.
    * "tpu": on a Cloud TPU host, unless JAX_PLATFORMS names others or TPU_SKIP_MDS_QUERY is set; JAX asks the metadata
      server (or GKE's variables) for the rest, slices included.
    * "one": none of them.
    """
    if any(name in env for name in VARIABLES):
        return _from_variables(env)
    if all(name in env for name in _SLURM) and _number(env, "SLURM_NTASKS") > 1:
        tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_NTASKS_PER_NODE", "")))
        gpus = _number(env, "SLURM_GPUS_ON_NODE") if "SLURM_GPUS_ON_NODE" in env else 0
        own = {"local_device_ids": list(range(gpus))} if tasks and int(tasks.group()) == 1 and gpus else {}
        return "slurm", {"cluster_detection_method": "slurm", **own}
    wanted = "tpu" in env.get("JAX_PLATFORMS", "tpu") and "TPU_SKIP_MDS_QUERY" not in env
    return ("tpu", {}) if tpu and wanted else ("one", {})


def _number(env: Mapping[str, str], name: str) -> int:
    if not env[name].isdigit():
        raise UserError(f"{name}={env[name]}: expected a number")
    return int(env[name])


def _from_variables(env: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    missing = [name for name in VARIABLES if name not in env]
    if env.get("JAX_NUM_PROCESSES") == "1" and VARIABLES[0] in missing:
        return "one", {}
    if missing:  # or each host would believe that it is alone
        there = ", ".join(name for name in VARIABLES if name in env)
        raise UserError(f"{there} is set, but {', '.join(missing)} is not; all three are needed")
    address, count, index = (env[name] for name in VARIABLES)
    if not (count.isdigit() and index.isdigit() and 0 <= int(index) < int(count)):
        raise UserError(f"JAX_NUM_PROCESSES={count} and JAX_PROCESS_ID={index}: expected a count, and a number below it")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: expected host:port of process 0")
    if int(count) == 1:
        return "one", {}
    return "variables", {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}


def _require_free(address: str) -> None:
    """UserError if another program listens on the port; JAX may end the process with a segmentation fault there."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", int(address.rpartition(":")[2])))
        except OSError as error:
            raise UserError(f"process 0 cannot listen on {address} ({error.strerror}); choose another port") from error


def on_tpu_host() -> bool:
    """Whether this machine has TPU chips and their library (looked for in /dev: asking JAX would start the backend)."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
