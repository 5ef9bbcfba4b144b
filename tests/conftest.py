"""Eight virtual CPU devices for every test: the mesh tests need them, single-device tests use the first.

Most of the suite's time is compilation of the same small programs, in this process and in those that tests start: they
share a cache on disk.
"""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding import MeshConfig, Placement, make_mesh

_LONGEST = (
    "notebooks", "test_arms", "test_ppo_dpo", "test_own_arms", "test_scripts", "test_rl", "test_pretrained",
    "test_pipeline", "test_openai",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files first, so that neither of two workers waits long for the other's last file."""
    order = {name: i for i, name in enumerate(_LONGEST)}

    def place(item) -> int:
        return min((i for name, i in order.items() if name in item.nodeid), default=len(order))

    items.sort(key=place)


@pytest.fixture
def one_device() -> Placement:
    return Placement(make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.fixture
def eight_devices() -> Placement:
    return Placement(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8]))


@pytest.fixture
def small_model() -> ModelConfig:
    return ModelConfig(vocab_size=128, width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8)
