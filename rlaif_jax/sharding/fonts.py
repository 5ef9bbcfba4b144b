"""Fonts for names in pictures: with a fallback for Chinese ones, which matplotlib's own font shows as empty boxes."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

from rlaif_jax.sharding.text import is_wide

CJK_FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC", "Microsoft YaHei",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Hiragino Sans GB", "Heiti SC", "SimHei", "Noto Sans CJK JP",
    "Noto Serif CJK SC", "SimSun", "Arial Unicode MS",
)  # fmt: skip
_CJK_FILES = ("notosanscjk", "notosanssc", "sourcehansans", "wqy-microhei", "wqy-zenhei", "pingfang", "msyh", "simhei")


def families(text: str) -> list[str]:
    """The font families to draw the text with: matplotlib's own, and one with Chinese glyphs where the text needs it.

    Warns where it needs one and none is installed.
    """
    import matplotlib

    own = list(matplotlib.rcParams["font.family"])
    if not any(map(is_wide, text)):
        return own
    found = cjk_family()
    if found is None:
        warnings.warn(
            "no font with Chinese glyphs is installed: such names are drawn as empty boxes; install one (Noto Sans CJK)",
            stacklevel=3,
        )
        return own
    return [*own, found]


@cache
def cjk_family() -> str | None:
    """An installed family with Chinese glyphs, or None. Looked up once."""
    from matplotlib import font_manager

    known = {entry.name for entry in font_manager.fontManager.ttflist if Path(entry.fname).exists()}
    for family in CJK_FAMILIES:
        if family in known:
            return family
    # matplotlib caches its list of fonts: one installed later is found by its file's name only
    for file in sorted(font_manager.findSystemFonts()):
        if Path(file).name.lower().startswith(_CJK_FILES):
            font_manager.fontManager.addfont(file)
            return font_manager.FontProperties(fname=file).get_name()
    return None
