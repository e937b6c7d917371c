"""Findings to files: label maps, figures, pictures and the report."""
