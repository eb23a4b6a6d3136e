"""What pages have in common: their templates, whose look and script are one, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup

from planaria.record.canvas import NARROW, WIDE, Size
from planaria.record.facts import percent, short_number, signed, sortable, thousands


def page_template(name: str) -> Template:
    """A page's template. All text is escaped; nothing is loaded from anywhere."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        thousands=thousands,
        percent=percent,
        signed=signed,
        sortable=sortable,
        short=short_number,
    )
    return environment.get_template(name)


def both_sizes(draw: Callable[[Size], str]) -> list[tuple[str, Markup]]:
    """(class, SVG) for wide and for narrow screens. The SVG is ours, and matplotlib escapes what it writes."""
    return [(size.name, Markup(draw(size))) for size in (WIDE, NARROW)]
