"""The loop, its checkpoints and recovery, and how runs are started and resumed."""
