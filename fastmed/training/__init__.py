"""Training: from folders of scans and labels to a bundle."""
