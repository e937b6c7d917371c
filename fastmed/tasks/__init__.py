"""Tasks: what a network's output means. One file per task."""
