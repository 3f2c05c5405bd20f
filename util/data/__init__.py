"""Data sets, the order in which training reads them, and the loader that hands them to a rank."""
