"""The two ways a run ends on purpose other than by finishing: the user's mistake, and a request to stop."""

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PREEMPTED = 75


class UsageError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do. Exit code 2, no traceback."""


class RunFailed(Exception):
    """The run cannot go on (non-finite loss, full disk). One line for the user; exit code 1."""


class Preempted(Exception):
    """Every rank agreed to stop because one was asked to. Exit code 75."""
