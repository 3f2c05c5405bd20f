"""Work that outlives an impatient launcher.

mpirun (Open MPI 5) that gets SIGTERM sends SIGTERM to its processes and SIGKILL a quarter of a second later; nothing
configures that, and no snapshot is that quick. So the process that mpirun knows only stands in for one that it does
not know, in a session of its own, which takes the end of its stand-in as a request to stop.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from types import FrameType

from launch.agents.beat import end_with_parent
from util.errors import EXIT_FAILED
from util.stop import STOP_SIGNALS, leave_at_stop_signals, on_stop_signal


def run_apart(work: Callable[[], int]) -> int:
    """Run ``work`` in a process of its own session, hand signals on to it, and return its exit code.

    ``work`` begins as a process that leaves at once when it is told to stop.
    """
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until it is clear which process takes them
    child = os.fork()
    if child == 0:
        code = EXIT_FAILED
        try:
            os.setsid()
            leave_at_stop_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            end_with_parent(parent, signal.SIGTERM)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def hand_on(number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)

    on_stop_signal(hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
