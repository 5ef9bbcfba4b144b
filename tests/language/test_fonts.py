"""Which font draws Chinese names."""

from pathlib import Path

import matplotlib
import pytest
from matplotlib import font_manager

from rlaif_jax.language import fonts


def forget_fonts():
    fonts.cjk_family.cache_clear()
    fonts.cjk_font.cache_clear()


@pytest.fixture
def no_memory():
    forget_fonts()
    yield
    forget_fonts()


def test_a_chinese_name_takes_an_installed_font_or_warns(monkeypatch, no_memory):
    entry = font_manager.FontEntry(fname=__file__, name="SimHei")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [entry])
    own = list(matplotlib.rcParams["font.family"])
    assert fonts.families("plain") == own and fonts.families("权重") == [*own, "SimHei"]
    forget_fonts()
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    with pytest.warns(UserWarning, match="no font with Chinese glyphs is installed"):
        assert fonts.families("权重") == own


def test_a_font_that_matplotlib_has_not_listed_yet_is_found_by_its_file(tmp_path, monkeypatch, no_memory):
    font = tmp_path / "NotoSansCJK-Regular.ttf"
    font.write_bytes(Path(font_manager.findfont("DejaVu Sans")).read_bytes())
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font)])
    assert fonts.cjk_family() == "DejaVu Sans", "the family that the file names"
    assert [entry.fname for entry in font_manager.fontManager.ttflist] == [str(font)]
