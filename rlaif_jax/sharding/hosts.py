"""Values and barriers between processes. For the rows of a batch, see `placement`.

Values go through JAX's coordination service, not over the devices. So a call may wait for hours, and in any thread, while the
devices compute. Every process must make the same calls in the same order (per `name`). With one process, there is nothing to
wait for.
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
_PART = 2**20  # characters per entry of the coordination service
_calls: dict[str, int] = {}  # uses of each name: the service needs a new key for each call
_lock = threading.Lock()


def is_first() -> bool:
    """Whether this is process 0, which writes files and prints for the user."""
    return jax.process_index() == 0


def barrier(name: str = "barrier", timeout: float = _DAY) -> None:
    """Returns when every process has called it; RuntimeError after `timeout` seconds."""
    if jax.process_count() > 1:
        _service().wait_at_barrier(_key(name), int(timeout * 1000))


def connect(mesh: Mesh) -> None:
    """Runs one collective over every set of mesh axes. Only several processes on CPU devices need it; else it does nothing.

    CPU processes communicate through gloo. gloo connects a set of devices at their first collective and waits only 30 s for
    a late process; on a busy machine, compile times differ by more than that. Here every process compiles first and then meets
    at a barrier. After the devices are connected, XLA waits half an hour for a late process.
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
    """Returns process 0's value on every process. It must be JSON-serializable; tuples arrive as lists.

    TypeError on every process for a value that is not serializable.
    """
    if jax.process_count() == 1:
        return _value(_entry(value))
    return _value(_told(_entry(value) if is_first() else "", name, timeout))


def all_values(value: Any, name: str = "values", timeout: float = _DAY) -> list[Any]:
    """Returns the list of all processes' values (see `broadcast`), in process order, on every process."""
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
    """Runs work() on process 0 only; returns its value (see `broadcast`) or raises its UserError on every process.

    The other processes wait for up to a day. If process 0 raises any other error, they raise a RuntimeError.
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
    """The value as JSON; or the error if it is not serializable, so that the other processes raise it and do not wait."""
    try:
        return json.dumps({"value": value})
    except (TypeError, ValueError) as error:
        return json.dumps({"error": f"a value for other processes must be JSON-serializable; {type(value).__name__}: {error}"})


def _value(entry: str) -> Any:
    found = json.loads(entry)
    if "error" in found:
        raise TypeError(found["error"])
    return found["value"]


def _told(text: str, name: str, timeout: float) -> str:
    """Returns process 0's text on every process; sends it in parts that are small enough for the service."""
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
    from jax._src import distributed  # the coordination service has no public API in JAX 0.10 to 0.12

    if distributed.global_state.client is None:
        raise UserError("several processes, but no coordination service: call rlaif_jax.sharding.init_distributed() first")
    return distributed.global_state.client
