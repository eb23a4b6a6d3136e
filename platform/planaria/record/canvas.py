"""What the report's figures share: sizes, style, and SVG whose colours are CSS variables of the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # matplotlib is slow to import, and only the report needs it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib wants real colours, so each part of the figure is drawn in a colour of its own that nothing else has,
# and every such colour is replaced by the CSS variable that the page defines for its theme.
INK, MUTED, LINE, PAGE, MAIN, SECOND = "#010101", "#010102", "#010103", "#010104", "#010105", "#010106"
KIND_COLOURS = {"abrupt": "#010107", "gradual": "#010108", "recurring": "#010109"}
BANDS = ("#01010a", "#01010b", "#01010c", "#01010d", "#01010e", "#01010f")
HEADS = "#010110"
CHOICE_COLOURS = {
    "keep": "#010111",
    "grow": "#010112",
    "shrink": "#010113",
    "recycle": "#010114",
    "restore": "#010115",
    "treatment": "#010116",
    "edit": "#010117",
}
"""By what was chosen, see `outcomes.kind_of`."""
CSS_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAGE: "--page",
    MAIN: "--main",
    SECOND: "--second",
    HEADS: "--main",
    **{colour: f"--{kind}" for kind, colour in KIND_COLOURS.items()},
    **{colour: f"--band-{i}" for i, colour in enumerate(BANDS)},
    **{colour: f"--choice-{kind}" for kind, colour in CHOICE_COLOURS.items()},
}


class Size(NamedTuple):
    """One width of the figure: the page shows the wide one on screens and the narrow one on phones."""

    name: str
    inches: float
    font_points: float


WIDE = Size("wide", 10.4, 9.5)
NARROW = Size("narrow", 4.4, 8.5)


def style_of(size: Size) -> dict[Any, Any]:
    """What matplotlib's rc_context takes."""
    return {
        "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
        "svg.hashsalt": size.name,
        "font.size": size.font_points,
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.titlecolor": INK,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "legend.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }


def title_axes(axes: Axes, title: str, size: Size, columns: int) -> None:
    """Title on the left; the legend beside it, or under it where the figure is narrow."""
    axes.set_title(title, loc="left", fontweight="bold", fontsize="medium", pad=6 if size is WIDE else 20)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower right" if size is WIDE else "lower left",
            bbox_to_anchor=(1.0, 1.0) if size is WIDE else (-0.02, 1.0),
            ncols=columns,
            frameon=False,
            borderaxespad=0.1,
            fontsize=size.font_points if size is WIDE else 7.2,
            columnspacing=1.2,
            handlelength=1.6,
        )


def to_svg(figure: Figure, name: str) -> str:
    """The <svg> element alone, with CSS variables for colours and ids that begin with `name`.

    No other figure of the page may have that name.
    """
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    text = sink.getvalue()
    text = text[text.index("<svg ") :]
    edits: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"<metadata>.*?</metadata>", ""),
        (r' (width|height)="[\d.]+pt"', ""),
        (r'\bid="', f'id="{name}-'),
        (r'href="#', f'href="#{name}-'),
        (r"url\(#", f"url(#{name}-"),
        (r"font-family: [^;\"]*|font: (?P<f>[^;\"]*?px) [^;\"]*", _page_font),
        (r"\s+", " "),
        ("|".join(CSS_VARIABLES), lambda found: f"var({CSS_VARIABLES[found[0]]})"),
    ]
    for pattern, replacement in edits:
        text = re.sub(pattern, replacement, text, flags=re.S)
    return text.strip()


def _page_font(found: re.Match[str]) -> str:
    """Size and weight as matplotlib chose them, the family as the page has it."""
    return "font-family: inherit" if found["f"] is None else f"font: {found['f']} var(--font)"
