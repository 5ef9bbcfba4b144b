"""Fonts for text in figures. matplotlib's default font shows Chinese characters as empty boxes. matplotlib is imported lazily."""

from __future__ import annotations

import unicodedata
import warnings
from functools import cache
from pathlib import Path

CJK_FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC", "Microsoft YaHei",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Hiragino Sans GB", "Heiti SC", "SimHei", "Noto Sans CJK JP",
    "Noto Serif CJK SC", "SimSun", "Arial Unicode MS",
)  # fmt: skip
_CJK_FILES = ("notosanscjk", "notosanssc", "sourcehansans", "wqy-microhei", "wqy-zenhei", "pingfang", "msyh", "simhei")


def has_cjk(text: str) -> bool:
    """Whether the text needs a Chinese, Japanese or Korean font."""
    return any(unicodedata.east_asian_width(c) in "WF" or "\u2e80" <= c <= "\u9fff" for c in text)


def families(text: str) -> list[str]:
    """The font families for a text: matplotlib's default, and one with Chinese glyphs if the text needs it.

    Warns if it needs one and none is installed.
    """
    import matplotlib

    own = list(matplotlib.rcParams["font.family"])
    if not has_cjk(text):
        return own
    found = cjk_family()
    if found is None:
        warnings.warn(
            "no font with Chinese glyphs is installed: Chinese text is drawn as empty boxes; install one (Noto Sans CJK)",
            stacklevel=3,
        )
        return own
    return [*own, found]


@cache
def cjk_font() -> Path | None:
    """An installed font file with Chinese glyphs, or None. Looked up once."""
    from matplotlib import font_manager

    listed = [(entry.name.lower(), Path(entry.fname)) for entry in font_manager.fontManager.ttflist]
    known = {name: path for name, path in listed if path.exists()}
    for family in CJK_FAMILIES:
        if family.lower() in known:
            return known[family.lower()]
    # matplotlib caches its font list: a font installed later is found by its file name only
    files = sorted(font_manager.findSystemFonts())
    return next((Path(f) for f in files if Path(f).name.lower().startswith(_CJK_FILES)), None)


@cache
def cjk_family() -> str | None:
    """The family name of `cjk_font` in matplotlib, or None. Looked up once."""
    from matplotlib import font_manager

    file = cjk_font()
    if file is None:
        return None
    listed = next((entry.name for entry in font_manager.fontManager.ttflist if entry.fname == str(file)), None)
    if listed is not None:
        return listed
    font_manager.fontManager.addfont(str(file))
    return font_manager.FontProperties(fname=str(file)).get_name()
