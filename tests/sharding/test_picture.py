"""Pictures: columns by device for trees on several meshes, names that are no markup, fonts."""

import warnings
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

from rlaif_jax.errors import UserError
from rlaif_jax.language import fonts
from rlaif_jax.sharding import abstract_mesh, describe, draw
from rlaif_jax.sharding.picture import device_columns, held_by

X = jax.ShapeDtypeStruct((8, 4), jnp.float32)


def _meshes() -> dict[str, Mesh]:
    devices = jax.devices()
    shapes = {"all": (devices, 4), "last": (devices[4:], 2), "turned": (devices[::-1], 4)}
    return {name: Mesh(np.array(some).reshape(n, 2), ("fsdp", "tensor")) for name, (some, n) in shapes.items()}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, to look at their parts."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    return figures


@pytest.mark.parametrize("spec", [PartitionSpec("fsdp", "tensor"), PartitionSpec(None, "fsdp"), PartitionSpec(("tensor", "fsdp"))])
def test_columns_are_devices_whatever_the_mesh(spec):
    meshes = _meshes()
    columns = device_columns(tuple(meshes.values()))
    assert list(columns) == jax.devices() and list(columns.values())[:2] == ["0:0", "0:1"]
    for mesh in meshes.values():
        sharding = NamedSharding(mesh, spec)
        numbers, _ = held_by(columns, sharding, 2)
        where = sharding.devices_indices_map(X.shape)
        starts = {d: tuple(s.start or 0 for s in index) for d, index in where.items()}
        order = sorted(set(starts.values()))
        assert list(numbers) == [order.index(starts[d]) if d in starts else -1 for d in jax.devices()]


def test_a_tree_on_several_meshes_is_drawn_with_blanks_and_bars_per_device(tmp_path, drawn):
    shardings = {name: NamedSharding(mesh, PartitionSpec("fsdp", "tensor")) for name, mesh in _meshes().items()}
    tree = dict.fromkeys(shardings, X)
    draw(tmp_path / "who.png", tree, shardings)
    upper, lower = drawn[0].axes
    cells = np.array([text.get_text() for text in upper.texts]).reshape(3, 8)
    assert list(cells[0]) == list("01234567") and list(cells[2]) == list("76543210")
    assert list(cells[1]) == ["", "", "", "", "0", "1", "2", "3"]
    bars = [bar.get_height() * 2**20 for bar in lower.patches]
    assert bars == [32] * 4 + [64] * 4 and max(bars) == describe(tree, shardings).device_bytes


def test_meshes_without_common_columns_are_refused(tmp_path):
    one, two = abstract_mesh({"fsdp": 4}, 4), abstract_mesh({"fsdp": 2, "tensor": 2}, 4)
    tree = {"a": X, "b": X}
    with pytest.raises(UserError, match="2 meshes and at least one of them is abstract"):
        draw(tmp_path / "who.png", tree, {k: NamedSharding(m, PartitionSpec()) for k, m in zip("ab", (one, two), strict=True)})
    draw(tmp_path / "who.png", tree, {k: NamedSharding(one, PartitionSpec("fsdp")) for k in tree})


NAMES = [r"a$\foo$", "a$b$c", "w[red]", "two\nlines", "\x1b[31m", "<b>&"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_names_and_titles_are_no_markup(tmp_path, eight_devices, drawn, suffix):
    tree = dict.fromkeys(NAMES, X)
    where = jax.tree.map(lambda _: eight_devices.replicated, tree)
    path = draw(tmp_path / f"who.{suffix}", tree, where, r"a $\foo$ title" + "\x1b")
    upper = drawn[0].axes[0]
    assert {label.get_text().split("  ")[0] for label in upper.get_yticklabels()} == {
        r"a$\foo$", "a$b$c", "w[red]", r"two\nlines", r"\x1b[31m", "<b>&"
    }  # fmt: skip
    assert not any(label.get_parse_math() for label in upper.get_yticklabels())
    if suffix == "svg":
        ElementTree.parse(path)


def test_a_name_of_any_length_leaves_room_for_the_grid(tmp_path, eight_devices, drawn):
    tree = {"h" * 150 + "t" * 150: X, "W" * 300: X, "short": X}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a layout that collapsed
        draw(tmp_path / "who.png", tree, jax.tree.map(lambda _: eight_devices.replicated, tree), "a long title " * 30)
    drawn[0].draw_without_rendering()  # the file has another resolution
    upper = drawn[0].axes[0]
    labels = [label.get_text() for label in upper.get_yticklabels()]
    assert any(label.startswith("hhh") and "…" in label and label.endswith("ttt  8x4") for label in labels)
    assert all(label.get_window_extent().x0 >= 0 for label in upper.get_yticklabels()), "no head is cut"
    assert drawn[0]._suptitle.get_window_extent().x0 >= 0
    assert upper.get_window_extent().width > 8 * 20


def test_the_family_is_given_to_names_and_title(tmp_path, eight_devices, drawn, monkeypatch):
    monkeypatch.setattr(fonts, "cjk_family", lambda: "DejaVu Serif")  # a stand-in that is always there
    with pytest.warns(UserWarning, match="Glyph .* missing"):
        draw(tmp_path / "who.png", {"权重": X}, {"权重": eight_devices.replicated}, "who")
    texts = [*drawn[0].axes[0].get_yticklabels(), drawn[0]._suptitle]
    assert all(text.get_fontfamily()[-1] == "DejaVu Serif" for text in texts)
