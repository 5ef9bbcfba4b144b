"""Golden tables: where every parameter of every preset lies under every rule set, on two meshes.

After an intended change of rules, axes or presets, write them anew and read the diff before you commit it:

    python -m tests.sharding.golden_tables
"""

from pathlib import Path

import jax

from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import PRESETS
from rlaif_jax.sharding import RULE_SETS, MeshConfig, Placement, abstract_mesh, describe, estimate
from rlaif_jax.sharding.describe import spec_text

FOLDER = Path(__file__).parent / "golden"
MESHES = {8: MeshConfig(data=1, fsdp=4, tensor=2), 256: MeshConfig(data=2, fsdp=16, tensor=8)}


def table(preset: str) -> str:
    """One block per rule set and mesh: name, shape, spec, shape on one device, repairs; then the bytes on one device."""
    cfg = PRESETS[preset].with_vocab(1000)
    abstract = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    axes = transformer.logical_axes(cfg)
    blocks = []
    for rules in RULE_SETS:
        for devices, mesh in MESHES.items():
            place = Placement.of(abstract_mesh(mesh, devices), rules)
            found = describe(abstract, place.tree(axes, abstract), place.repairs(axes, abstract))
            rows = [
                f"{line.name:18} {list(line.shape)!s:22} {spec_text(line.spec):26} {list(line.part)!s:22} {line.note}".rstrip()
                for line in found.lines
            ]
            memory = estimate(axes, abstract, place).parameters
            sizes = ", ".join(f"{axis} {size}" for axis, size in place.sizes.items() if size > 1)
            blocks.append("\n".join([f"# {preset}, rules {rules}, mesh {sizes}: {memory:,} bytes on one device", *rows]))
    return "\n\n".join(blocks) + "\n"


def path(preset: str) -> Path:
    """The golden file of a preset."""
    return FOLDER / f"{preset}.txt"


if __name__ == "__main__":
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for name in PRESETS:
        path(name).write_text(table(name), encoding="utf-8")
        print(path(name))
