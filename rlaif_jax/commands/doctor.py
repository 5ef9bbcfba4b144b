"""`rlaif doctor`: what a report of a problem needs: versions, devices, memory, and the variables that change them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

import rlaif_jax

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "openai", "numpy")
_VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def describe_machine(console: Console) -> None:
    """Prints one line for each fact. No value of a key is among them."""
    table = Table("what", "here", title="This machine")
    for name, value in _facts():
        table.add_row(name, Text(value))
    console.print(table)


def _facts() -> Iterator[tuple[str, str]]:
    yield "rlaif_jax", f"{rlaif_jax.__version__} in {os.path.dirname(rlaif_jax.__file__)}"
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    for name in _PACKAGES:
        yield name, _version(name)
    devices = jax.devices()
    yield "devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {jax.process_count()} process(es)"
    if limit := (devices[0].memory_stats() or {}).get("bytes_limit"):
        yield "memory of a device", f"{limit / 2**30:.1f} GiB"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield "memory of the host", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    yield "CPU cores", str(os.cpu_count())
    for name in _VARIABLES:
        if name in os.environ:
            yield name, os.environ[name]
    yield "OPENAI_API_KEY", "set" if os.environ.get("OPENAI_API_KEY") else "not set"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
