"""``python -m evaluators.report``: a page about one run, or about several side by side, in one file."""
