"""The command that computes reference statistics of a data set."""
