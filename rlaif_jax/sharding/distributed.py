"""Starts JAX's distributed runtime: on Cloud TPU, on GPU hosts, or with several processes on one machine.

    init_distributed()        # call it before anything else uses a device; with one process it does nothing
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
    """This process's index, the number of processes, and where both come from: "one", "variables", "slurm" or "tpu"."""

    index: int
    count: int
    source: str


def init_distributed(
    timeout: int = 300, env: Mapping[str, str] | None = None, say: Callable[[str], None] = lambda text: None
) -> Processes:
    """Connects this process to the other processes of the program, which it finds in the environment (see `settings`).

    Waits at most `timeout` seconds for the other processes. If one does not connect, JAX aborts this process and nothing can
    catch that; so `say` gets a message before the wait. On CPU devices, several processes use gloo and no compilation cache:
    it is untested whether a cached program keeps the order of its collectives. UserError for invalid variables.
    """
    env = os.environ if env is None else env
    source, found = settings(env, on_tpu_host())
    if source == "one":
        return Processes(0, 1, source)
    if found.get("process_id") == 0:
        _require_free(found["coordinator_address"])
        say(f"waiting at {found['coordinator_address']} for {found['num_processes'] - 1} other processes, at most {timeout} s")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # At exit, JAX waits for all processes; one that exits early because of a mistake must not wait long for the other ones.
    jax.distributed.initialize(**found, initialization_timeout=timeout, shutdown_timeout_seconds=60)
    if jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
    return Processes(jax.process_index(), jax.process_count(), source)


def settings(env: Mapping[str, str], tpu: bool) -> tuple[str, dict[str, Any]]:
    """Returns (source, arguments of jax.distributed.initialize). The first source that applies is used:

    * "variables": JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID are set.
    * "slurm": inside `srun` with more than one task. With one task per node, a task uses all GPUs of the node
      (SLURM_GPUS_ON_NODE); with several tasks per node, one GPU each, which is JAX's default.
    * "tpu": on a Cloud TPU host, unless JAX_PLATFORMS excludes TPUs or TPU_SKIP_MDS_QUERY is set. JAX gets the rest, slices
      included, from the metadata server or from GKE's variables.
    * "one": none of these; a single process.
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
    if missing:  # else each host would run as a single process
        there = ", ".join(name for name in VARIABLES if name in env)
        raise UserError(f"{there} is set, but {', '.join(missing)} is not; all three are needed")
    address, count, index = (env[name] for name in VARIABLES)
    if not (count.isdigit() and index.isdigit() and 0 <= int(index) < int(count)):
        raise UserError(f"JAX_NUM_PROCESSES={count} and JAX_PROCESS_ID={index}: expected a count and an index below it")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: expected host:port of process 0")
    if int(count) == 1:
        return "one", {}
    return "variables", {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}


def _require_free(address: str) -> None:
    """UserError if another program listens on the port; JAX may crash with a segmentation fault in that case."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", int(address.rpartition(":")[2])))
        except OSError as error:
            raise UserError(f"process 0 cannot listen on {address} ({error.strerror}); choose another port") from error


def on_tpu_host() -> bool:
    """Whether this machine has TPU chips and libtpu. Looks in /dev, because asking JAX would start the backend."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
