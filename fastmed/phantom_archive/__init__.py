"""An archive as hospitals have them, of phantoms, with the known truth of each thing in it."""

from fastmed.phantom_archive.plan import SIZES, WAYS, shares, write_archive
from fastmed.phantom_archive.truth import Expected, read_truth

__all__ = ["SIZES", "WAYS", "Expected", "read_truth", "shares", "write_archive"]
