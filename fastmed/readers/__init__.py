"""Readers: from bytes on disk to Volumes. `index` finds and judges, the format files read."""
