"""An export on a terminal: the live model beside the exported one."""

from __future__ import annotations

from rich.table import Table

from planaria.deploy.export import Exported


def table(made: Exported) -> Table:
    where = "held-out rows" if made.held_out else "rows of the memory"
    score = "accuracy" if made.task == "classification" else "root mean squared error"
    shown = Table(title=f"{made.format}, step {made.step:,}; largest difference {made.difference:.2g}")
    for heading in ("", "live", "exported"):
        shown.add_column(heading, justify="right" if heading else "left")
    shown.add_row("bytes", f"{made.live_bytes:,}", f"{made.bytes:,}")
    for rows in made.live_ms:
        shown.add_row(f"ms for {rows} at once", f"{made.live_ms[rows]:.3f}", f"{made.exported_ms[rows]:.3f}")
    shown.add_row(f"{score}, {made.rows:,} {where}", f"{made.live_score:.4f}", f"{made.exported_score:.4f}")
    return shown
