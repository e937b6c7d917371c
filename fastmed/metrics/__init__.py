"""Metrics: how good an answer is. They know arrays and geometry, no files and no models."""
