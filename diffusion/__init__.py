"""The mathematics: no files, no ranks, no options.

Three notions of time, which do not know each other: ``continuous`` t in [0, 1], ``discrete`` labels, ``log_snr``. What
they share stands here: ``model`` (what a trained model can do), ``preconditioning`` (scalings around a network),
``ode`` and ``divergence`` (solving, with a density), ``bits`` (grey levels and bits/dim), ``importance_weighted``.
"""
