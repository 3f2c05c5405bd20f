"""``python -m launch``: hand runs to a scheduler, watch over them, and check a cluster before they start."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from util.errors import EXIT_FINISHED, EXIT_USAGE, UsageError

MAX_REQUEUES = 20


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help says more)")


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 done, 1 doctor found a fault, 2 usage."""
    # Everything after the first "--" belongs to main.py, whatever it looks like.
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    try:
        if words[:1] == ["doctor"] and not {"-h", "--help"} & set(words):
            from launch.checks.doctor import run_doctor

            return run_doctor([word for word in words[1:] if word != "--"])
        options = vars(_parser().parse_args(words[:cut]))
        _execute(options.pop("command"), argparse.Namespace(**options), words[cut + 1 :])
        return EXIT_FINISHED
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (KeyboardInterrupt, BrokenPipeError):  # the usual ends of `launch logs -f`
        sys.stderr.close()
        return EXIT_FINISHED


def _execute(command: str, options: argparse.Namespace, arguments: list[str]) -> None:
    # What a command does not need is not imported: submitit and torch are slow to.
    if arguments and command not in ("submit", "job"):
        raise UsageError(f"launch {command} takes no arguments of main.py")
    if command == "submit":
        from launch.jobs.submit import submit

        job = submit(options, arguments)
        print(f"job {job.job_id}, output in {job.folder}")
    elif command == "job":
        from launch.command import resolve
        from launch.jobs.requeue import script

        script(options.event, resolve(arguments), options.max_requeues)
    elif command == "status":
        from launch.jobs.job_file import find_run, known_runs
        from launch.jobs.status import run_states, table

        states = run_states([find_run(name) for name in options.runs] if options.runs else known_runs())
        nothing = "no runs yet; `launch submit` and slurm/*.sbatch start them"
        print(json.dumps(states, indent=2) if options.json else table(states) if states else nothing)
    else:
        from launch.jobs.job_file import find_run
        from launch.jobs.manage import cancel_run, requeue_run, show_log

        workdir = find_run(options.run)
        if command == "logs":
            show_log(workdir, options.rank, options.follow)
        else:
            print(cancel_run(workdir) if command == "cancel" else requeue_run(workdir, options.nodes))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m launch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    count, number = _at_least(1), _at_least(0)
    run: dict[str, Any] = {"metavar": "RUN", "help": "the run's folder or job id"}
    requeues: dict[str, Any] = {"type": number, "default": MAX_REQUEUES, "metavar": "R"}

    add = commands.add_parser(
        "submit",
        help="submit a run through submitit",
        usage="python -m launch submit [options] -- <arguments of main.py>",
        description="Submit a run. Prints its job id and folder at once; bad arguments are refused at once.",
    ).add_argument
    add("--executor", choices=("slurm", "local"), default="slurm", help="where to run [slurm]")
    add("--nodes", type=count, default=1, metavar="N", help="number of nodes [1]")
    add("--gpus_per_node", type=count, metavar="G", help="GPUs to ask for, and ranks, on each node")
    add("--time", default="24:00:00", metavar="T", help="time limit as sbatch takes it [24:00:00]")
    add("--partition", default="", metavar="P", help="partition [the cluster's default]")
    add("--name", default="", help="name of the job [that of the run's folder]")
    often = f"how often it may be started again after a time-out or a pre-emption [{MAX_REQUEUES}]"
    add("--max_requeues", help=often, **requeues)
    other = "another option of sbatch, e.g. account=physics or exclusive; may be given several times"
    add("--slurm", action="append", type=_option_of_sbatch, default=[], metavar="KEY=VALUE", help=other)

    add = commands.add_parser("status", help="show runs", description="A line for each run.").add_argument
    add("runs", nargs="*", metavar="RUN", help="a run's folder or a job id [all that were started]")
    add("--json", action="store_true", help="the same as JSON, with seconds as numbers")

    add = commands.add_parser("logs", help="show what a run says").add_argument
    add("run", **run)
    add("-f", "--follow", action="store_true", help="go on until the job is over")
    add("--rank", type=number, metavar="R", help="this rank's log [what the job writes]")

    commands.add_parser("cancel", help="stop a run with a snapshot; it is not started again").add_argument("run", **run)

    add = commands.add_parser("requeue", help="start a run again from a snapshot").add_argument
    add("run", **run)
    add("--nodes", type=count, metavar="M", help="on so many nodes [as before]")

    add = commands.add_parser(
        "job",
        help="for the script of a Slurm job: note its start; requeue it after it stopped",
        usage="python -m launch job {started,stopped} [--max_requeues R] -- <arguments of main.py>",
    ).add_argument
    add("event", choices=("started", "stopped"))
    add("--max_requeues", **requeues)

    checks = "check devices, network, file system and data in under a minute"
    usage = "python -m launch doctor <arguments of main.py>, under any of the launchers"
    commands.add_parser("doctor", help=checks, usage=usage)
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdigit():
            raise argparse.ArgumentTypeError(f"'{text}': a whole number expected")
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"at least {least} expected")
        return int(text)

    return read


def _option_of_sbatch(text: str) -> tuple[str, str | bool]:
    key, separator, value = text.partition("=")
    if not re.fullmatch(r"[a-z][a-z-]*", key) or "\n" in value:
        raise UsageError(f"--slurm {text}: write an option of sbatch as key=value, e.g. --slurm account=physics")
    return key, value if separator else True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
