"""Several processes as one program: values and barriers between them (rows of batches: see `placement`).

Values go through JAX's coordination service and not over the devices, so they may be waited for as long as it takes, in
any thread, while the devices work. Every process makes the same calls in the same order (per `name`). With one process,
all of this does nothing.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlaif_jax.errors import UserError

T = TypeVar("T")
_DAY = 24 * 3600.0
_PART = 2**20  # characters of one entry in the service
_calls: dict[str, int] = {}  # how often each name was used: the service wants every key to be new
_lock = threading.Lock()


def is_first() -> bool:
    """Whether this is process 0, the one that writes files and talks to the user."""
    return jax.process_index() == 0


def barrier(name: str = "barrier", timeout: float = _DAY) -> None:
    """Returns when every process is here; RuntimeError after `timeout` seconds."""
    if jax.process_count() > 1:
        _service().wait_at_barrier(_key(name), int(timeout * 1000))


def connect(mesh: Mesh) -> None:
    """Has all devices of a mesh meet once over every set of its axes; only several processes on CPU devices need it.

    They talk through gloo, which connects a set of devices at its first collective and then waits 30 s for the late ones
    and no longer; on a busy machine one process may compile that much longer than another. Here all come at one time,
    and of those that are connected XLA waits for half an hour.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    groups = [group for count in range(1, len(axes) + 1) for group in itertools.combinations(axes, count)]
    spec = PartitionSpec(tuple(axes))
    ones = np.ones(mesh.size, np.float32)
    x = jax.make_array_from_callback(ones.shape, NamedSharding(mesh, spec), lambda part: ones[part])
    meet = jax.shard_map(
        lambda x: x + sum(jax.lax.psum(x, group) for group in groups), mesh=mesh, in_specs=spec, out_specs=spec
    )  # fmt: skip
    compiled = jax.jit(meet).lower(x).compile()
    barrier("connect")
    jax.block_until_ready(compiled(x))


def broadcast(value: Any, name: str = "value", timeout: float = _DAY) -> Any:
    """Process 0's value (anything that JSON can hold; tuples come as lists), on every process.

    TypeError on all of them where JSON cannot hold it.
    """
    if jax.process_count() == 1:
        return _value(_entry(value))
    return _value(_told(_entry(value) if is_first() else "", name, timeout))


def all_values(value: Any, name: str = "values", timeout: float = _DAY) -> list[Any]:
    """Every process's value (as in `broadcast`), in the order of the processes, on every process."""
    if jax.process_count() == 1:
        return [_value(_entry(value))]
    service, key, wait = _service(), _key(name), int(timeout * 1000)
    service.key_value_set(f"{key}/{jax.process_index()}", _entry(value))
    found = [service.blocking_key_value_get(f"{key}/{i}", wait) for i in range(jax.process_count())]
    service.wait_at_barrier(f"{key}/read", wait)
    if is_first():
        service.key_value_delete(f"{key}/")
    return [_value(entry) for entry in found]


def on_first(work: Callable[[], T], name: str = "work") -> T:
    """work() on process 0 alone; its value (as in `broadcast`) or its UserError on every process.

    The others wait, without a limit that matters. Any other error of process 0 is a RuntimeError on them.
    """
    if jax.process_count() == 1:
        return _value(_entry(work()))
    if not is_first():
        found = broadcast(None, name)
        if "error" in found:
            raise (UserError if found["mine"] else RuntimeError)(found["error"])
        return found["value"]
    try:
        value = _value(_entry(work()))
    except BaseException as error:
        user = isinstance(error, UserError)
        broadcast({"error": str(error) if user else f"process 0 failed: {error!r}", "mine": user}, name)
        raise
    return broadcast({"value": value}, name)["value"]


def _entry(value: Any) -> str:
    """What is told of a value: its JSON, or that it has none, so that nobody waits for it."""
    try:
        return json.dumps({"value": value})
    except (TypeError, ValueError) as error:
        return json.dumps({"error": f"a value for other processes must be what JSON can hold, not {type(value).__name__}: {error}"})


def _value(entry: str) -> Any:
    found = json.loads(entry)
    if "error" in found:
        raise TypeError(found["error"])
    return found["value"]


def _told(text: str, name: str, timeout: float) -> str:
    """Process 0's text on every process, in parts that the service can hold."""
    service, key, wait = _service(), _key(name), int(timeout * 1000)
    if is_first():
        parts = [text[at : at + _PART] for at in range(0, len(text), _PART)]
        for number, part in enumerate(parts):
            service.key_value_set(f"{key}/{number}", part)
        service.key_value_set(f"{key}/parts", str(len(parts)))
    count = int(service.blocking_key_value_get(f"{key}/parts", wait))
    text = "".join(service.blocking_key_value_get(f"{key}/{i}", wait) for i in range(count))
    service.wait_at_barrier(f"{key}/read", wait)
    if is_first():
        service.key_value_delete(f"{key}/")
    return text


def _key(name: str) -> str:
    with _lock:
        _calls[name] = _calls.get(name, 0) + 1
        return f"rlaif/{name}/{_calls[name]}"


def _service() -> Any:
    from jax._src import distributed  # JAX shows its coordination service under no public name (0.10 to 0.12)

    if distributed.global_state.client is None:
        raise UserError("several processes, but no coordination service: call rlaif_jax.sharding.init_distributed() first")
    return distributed.global_state.client
