"""Metrics of features and logits that are there already: numbers in, numbers out; no files, no ranks, no flags."""
