"""The meta-learned controller against what one would do without it, on streams it has never seen."""
