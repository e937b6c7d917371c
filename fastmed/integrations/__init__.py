"""fastmed's kernels inside other packages, one file each; importing it imports none of them."""
