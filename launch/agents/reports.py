"""What a rank or a node leaves behind when it fails, so that the one cause is shown among many consequences."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from util.errors import EXIT_FAILED, EXIT_USAGE, RunFailed, UsageError

FOLDER_VARIABLE = "SCOREFLEET_REPORTS"
LONGEST_MESSAGE = 1000
LONGEST_TRACEBACK = 8000
_CONSEQUENCES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection was likely closed",
    "Connection refused",
    "Broken pipe",
    "Socket Timeout",
    "failed to connect",
    "failed to recv",
    "failed to pass monitoredBarrier",
    "remote process exited",
    "Timed out waiting",
)
_WEIGHTS = {"killed": 0, "hung": 0, "node": 0, "usage": 1, "failed": 1, "error": 1, "exited": 2}


@dataclass(frozen=True)
class FailureReport:
    """The failure of one rank, or of a node.

    Attributes:
        rank: of all nodes; -1 for a node.
        host: where it was, for messages.
        time: when, in seconds since the epoch.
        kind: "usage" (exit code 2), "failed" (a reason for the user), "error" (with a traceback), "killed" (by a
            signal), "hung", "exited" (without a word), or "node".
        message: one line. After "killed", "hung", "exited" and "node" it goes on from the name of rank or node.
        consequence: says only that another rank went away.
    """

    rank: int
    host: str
    time: float
    kind: str
    message: str
    traceback: str = ""
    consequence: bool = False

    @property
    def exit_code(self) -> int:
        return EXIT_USAGE if self.kind == "usage" else EXIT_FAILED

    def line(self) -> str:
        """The failure in one line."""
        if self.kind == "usage":
            return f"error: {self.message}"
        who = self.host if self.rank < 0 else f"rank {self.rank} on {self.host}"
        joint = {"failed": ": ", "error": " failed: "}.get(self.kind, " ")
        return f"{who}{joint}{self.message}"

    def text(self) -> str:
        """The failure with all that is known of it."""
        return f"{self.traceback}{self.line()}"

    def on(self, host: str) -> FailureReport:
        """The same, told of a place as the agent calls it."""
        return replace(self, host=host)

    def order(self) -> tuple[bool, int, float]:
        """Sorts causes before consequences, what a rank could not say itself before what it said, then by time."""
        return (self.consequence, _WEIGHTS.get(self.kind, 2), self.time)


def report_of(error: BaseException, rank: int) -> FailureReport:
    """The report of an exception that ended a rank."""
    kind = "usage" if isinstance(error, UsageError) else "failed" if isinstance(error, RunFailed) else "error"
    message = " ".join(str(error).split()) or type(error).__name__
    text = "" if kind != "error" else "".join(traceback.format_exception(error))
    consequence = kind == "error" and any(mark in message for mark in _CONSEQUENCES)
    return FailureReport(
        rank, socket.gethostname(), time.time(), kind, message[:LONGEST_MESSAGE], text[-LONGEST_TRACEBACK:], consequence
    )


def report_of_exit(code: int, rank: int, host: str, log: Path) -> FailureReport:
    """The report of a rank that ended without leaving one."""
    where = f"its log is {log}"
    if code >= 0:
        return FailureReport(rank, host, time.time(), "exited", f"exited with code {code}; {where}")
    name = signal.Signals(-code).name
    # NCCL's watchdog aborts a rank when another one has gone away.
    aborted = -code == signal.SIGABRT
    return FailureReport(rank, host, time.time(), "killed", f"was killed by {name}; {where}", consequence=aborted)


def report_from(fields: dict[str, Any]) -> FailureReport:
    """A report that was written with ``dataclasses.asdict``.

    Raises:
        TypeError: it is none.
    """
    return FailureReport(**fields)


def write_report(report: FailureReport) -> bool:
    """Leave the report for the agent; False where there is no agent (torchrun)."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return False
    path = Path(folder) / f"rank_{report.rank}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(report)))
    temporary.replace(path)
    return True


def read_reports(folder: Path) -> dict[int, FailureReport]:
    """Every report in the folder, by rank."""
    reports = [report_from(json.loads(path.read_text())) for path in folder.glob("rank_*.json")]
    return {report.rank: report for report in reports}
