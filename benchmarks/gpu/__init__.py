"""``python -m benchmarks.gpu --minutes 5``: one run that says what of this project works on a GPU, and how fast.

First what has to hold (``checks.py``): steps of every system against those of the CPU, no waiting inside a step,
exact resume, two ranks on one GPU. Then rates (``rates.py``) until the time is up. Prints Markdown, and writes it and
the same as JSON. ``--device cpu --tiny`` goes the same ways on a CPU, with small networks, so that it is known to run.
"""
