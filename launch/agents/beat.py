"""Signs of life between an agent and each of its ranks: a byte a second, both ways, over a socket pair."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time

from util.errors import EXIT_FAILED

DESCRIPTOR_VARIABLE = "SCOREFLEET_BEAT_DESCRIPTOR"
LOG_VARIABLE = "SCOREFLEET_LOG"
AGENT_VARIABLE = "SCOREFLEET_AGENT"
BEAT_SECONDS = 1.0


class Beat:
    """One end. A side that is stopped or hangs falls silent; one that has ended closes its end.

    Args:
        end: of a socket pair.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self.heard = time.monotonic()
        self._sent = 0.0

    def exchange(self) -> bool:
        """Send a byte if one is due, and note what came; False when the other side has closed."""
        now = time.monotonic()
        if now - self._sent >= BEAT_SECONDS:
            self._sent = now
            with contextlib.suppress(OSError):  # a stopped process reads nothing: its buffer may be full
                self._end.send(b".")
        try:
            while block := self._end.recv(4096):
                self.heard = now
                if len(block) < 4096:
                    return True
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        self._end.close()


def live_with_agent(timeout_seconds: float) -> None:
    """In a rank, before anything slow: end with the agent, and show it and hear from it that both are alive.

    The thread runs on through long collectives and evaluations. An agent that is silent for ``timeout_seconds`` is
    stopped or hangs, and nobody would learn what becomes of its ranks, so it is killed, and they end with it. A second
    call does nothing.
    """
    agent = os.environ.get(AGENT_VARIABLE)
    descriptor = os.environ.pop(DESCRIPTOR_VARIABLE, None)
    if agent is None or descriptor is None:
        return
    log = os.environ[LOG_VARIABLE]
    end_with_parent(int(agent), signal.SIGKILL)
    beat = Beat(socket.socket(fileno=int(descriptor)))
    os.set_inheritable(int(descriptor), False)

    def watch() -> None:
        last = time.monotonic()
        while beat.exchange():
            now = time.monotonic()
            if now - last > timeout_seconds / 2:
                beat.heard = now  # this rank itself stood still
            last = now
            if now - beat.heard > timeout_seconds:
                # Rank 0's output goes through the agent, which no longer takes it.
                with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as file:
                    file.write(f"the agent {agent} gave no sign of life for {timeout_seconds:g} s and is killed\n")
                with contextlib.suppress(OSError):
                    os.kill(int(agent), signal.SIGKILL)
                break
            time.sleep(BEAT_SECONDS / 2)
        os._exit(EXIT_FAILED)

    threading.Thread(target=watch, name="beat", daemon=True).start()


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Ask the kernel for a signal when the parent process ends, so that nothing is left behind (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(parent_death_signal, number)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), number)
