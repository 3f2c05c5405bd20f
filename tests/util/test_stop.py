"""A process that leaves at once at a stop signal, whatever it waits for, and what it forks."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.patience import PATIENCE
from tests.system.command import ROOT
from util.stop import STOP_SIGNALS

HEAD = "import ctypes, os, signal, time\nfrom util.stop import StopRequest, leave_at_stop_signals\n"
READY = "leave_at_stop_signals()\nprint('ready', flush=True)\n"
WAITING = {"in Python": "time.sleep(3600)", "in C": "ctypes.CDLL(None).sleep(3600)"}


def script(text: str) -> subprocess.Popen[str]:
    """A process that runs the text and has said something."""
    process = subprocess.Popen([sys.executable, "-c", HEAD + text], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("where", list(WAITING))
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_ends_any_waiting(number: signal.Signals, where: str) -> None:
    process = script(READY + WAITING[where])
    process.send_signal(number)
    assert process.wait(timeout=PATIENCE) == 75


def test_from_the_first_thing_to_save_on_it_is_a_wish() -> None:
    process = script(
        "leave_at_stop_signals()\nstop = StopRequest()\nstop.listen()\nprint('ready', flush=True)\n"
        "while not stop():\n    time.sleep(0.01)\nprint(stop.reason)\n"
    )
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=PATIENCE)[0] == "SIGHUP\n"
    assert process.returncode == 0


def test_what_nohup_ignores_stays_ignored() -> None:
    text = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + READY
    text += "StopRequest().listen()\ntime.sleep(3600)"
    for waiting in (text, text.replace("StopRequest().listen()\n", "")):
        process = script(waiting)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGKILL if "StopRequest" in waiting else signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == (-9 if "StopRequest" in waiting else 75)


def test_signals_of_a_forked_process_are_its_own() -> None:
    process = script(
        "leave_at_stop_signals()\nchild = os.fork()\nif not child:\n    time.sleep(3600)\n"
        "os.kill(child, signal.SIGTERM)\nprint('ready', flush=True)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\ntime.sleep(1)\nprint('still here')"
    )
    assert process.communicate(timeout=PATIENCE)[0] == f"{-signal.SIGTERM}\nstill here\n"
    assert process.returncode == 0
