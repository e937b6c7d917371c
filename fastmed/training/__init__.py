"""Training: annotated scans and a recipe become a bundle that `fastmed infer` runs."""
