"""Golden tables: where every parameter of every preset lies under every rule set, on two meshes; of its scalar head
(reward model, critic) and of its default adapter, too.

After an intended change of rules, axes or presets, write them anew and read the diff before you commit it:

    python -m tests.sharding.golden_tables
"""

from pathlib import Path

import jax

from rlaif_jax.models import heads, lora
from rlaif_jax.models.model_config import PRESETS
from rlaif_jax.sharding import RULE_SETS, MeshConfig, Placement, abstract_mesh, describe, estimate
from rlaif_jax.sharding.describe import spec_text

FOLDER = Path(__file__).parent / "golden"
MESHES = {8: MeshConfig(data=1, fsdp=4, tensor=2), 256: MeshConfig(data=2, fsdp=16, tensor=8)}


def table(preset: str) -> str:
    """One block per rule set and mesh: name, shape, spec, shape on one device, repairs; then the bytes on one device."""
    cfg, adapter, key = PRESETS[preset].with_vocab(1000), lora.LoraConfig(), jax.random.key(0)
    scalar, scalar_axes = jax.eval_shape(lambda: heads.init(cfg, key)), heads.logical_axes(cfg)
    abstract = scalar["model"] | {"adapter": jax.eval_shape(lambda: lora.init(cfg, adapter, key)), "head": scalar["head"]}
    axes = scalar_axes["model"] | {"adapter": lora.logical_axes(cfg, adapter), "head": scalar_axes["head"]}
    blocks = []
    for rules in RULE_SETS:
        for devices, mesh in MESHES.items():
            place = Placement.of(abstract_mesh(mesh, devices), rules)
            found = describe(abstract, place.tree(axes, abstract), place.repairs(axes, abstract))
            rows = [
                f"{line.name:22} {list(line.shape)!s:22} {spec_text(line.spec):26} {list(line.part)!s:22} {line.note}".rstrip()
                for line in found.lines
            ]
            model, trained = (estimate(a, t, place).parameters for a, t in (
                (scalar_axes["model"], scalar["model"]), (axes["adapter"], abstract["adapter"])))  # fmt: skip
            sizes = ", ".join(f"{axis} {size}" for axis, size in place.sizes.items() if size > 1)
            title = f"# {preset}, rules {rules}, mesh {sizes}: {model:,} bytes on one device, adapter {trained:,}"
            blocks.append("\n".join([title, *rows]))
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
