"""``python -m launch``: hand runs to a scheduler, watch over them, and check a cluster before they start."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from launch.jobs.requeue import DEFAULT_MAX_REQUEUES
from util.errors import EXIT_FINISHED, EXIT_USAGE, UsageError


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
        options = _parser().parse_args(words[:cut])
        return _execute(options, words[cut + 1 :])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (KeyboardInterrupt, BrokenPipeError):  # the usual ends of `launch logs -f`
        sys.stderr.close()
        return EXIT_FINISHED


def _execute(options: argparse.Namespace, arguments: list[str]) -> int:
    command: str = options.command
    if arguments and command not in ("submit", "job"):
        raise UsageError(f"launch {command} takes no arguments of main.py")
    if command == "submit":
        from launch.jobs.submit import SubmitOptions, read_slurm_options, submit

        values = {item.name: getattr(options, item.name) for item in dataclasses.fields(SubmitOptions)}
        job = submit(SubmitOptions(**{**values, "slurm": read_slurm_options(options.slurm)}), arguments)
        print(f"job {job.job_id}, output in {job.folder}")
    elif command == "status":
        from launch.jobs.job_file import find_run, known_runs
        from launch.jobs.status import run_states, table

        states = run_states([find_run(name) for name in options.runs] if options.runs else known_runs())
        if options.json:
            print(json.dumps([dataclasses.asdict(state) for state in states], indent=2))
        else:
            print(table(states) if states else "no runs yet; `launch submit` and slurm/*.sbatch start them")
    elif command == "job":
        from launch.jobs.requeue import job_started, job_stopped
        from main import parse_config

        config = parse_config(arguments)
        if options.event == "started":
            job_started(config, arguments, options.max_requeues)
        else:
            print(job_stopped(config), file=sys.stderr)
    else:
        from launch.jobs.job_file import find_run
        from launch.jobs.manage import cancel_run, requeue_run, show_log

        workdir = find_run(options.run)
        if command == "logs":
            show_log(workdir, options.rank, options.follow)
        elif command == "cancel":
            print(cancel_run(workdir))
        else:
            print(requeue_run(workdir, options.nodes))
    return EXIT_FINISHED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m launch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    submit = commands.add_parser(
        "submit",
        help="submit a run through submitit",
        usage="python -m launch submit [options] -- <arguments of main.py>",
        description="Submit a run. Prints its job id and folder at once; bad arguments are refused at once.",
    )
    submit.add_argument("--executor", choices=("slurm", "local"), default="slurm", help="where to run [slurm]")
    submit.add_argument("--nodes", type=_count, default=1, metavar="N", help="number of nodes [1]")
    submit.add_argument("--gpus_per_node", type=_count, metavar="G", help="GPUs to ask for, and ranks, on each node")
    submit.add_argument("--time", default="24:00:00", metavar="T", help="time limit as sbatch takes it [24:00:00]")
    submit.add_argument("--partition", default="", metavar="P", help="partition [the cluster's default]")
    submit.add_argument("--name", default="", help="name of the job [that of the run's folder]")
    submit.add_argument(
        "--max_requeues", type=_number, default=DEFAULT_MAX_REQUEUES, metavar="R",
        help=f"how often it may be started again after a time-out or a pre-emption [{DEFAULT_MAX_REQUEUES}]",
    )  # fmt: skip
    submit.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE",
        help="another option of sbatch, e.g. account=physics or exclusive; may be given several times",
    )  # fmt: skip

    status = commands.add_parser("status", help="show runs", description="A line for each run.")
    status.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder or a job id [all that were started]")
    status.add_argument("--json", action="store_true", help="the same as JSON, with seconds as numbers")

    logs = commands.add_parser("logs", help="show what a run says")
    logs.add_argument("run", metavar="RUN", help="the run's folder or job id")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job is over")
    logs.add_argument("--rank", type=_number, metavar="R", help="this rank's log [what the job writes]")

    cancel = commands.add_parser("cancel", help="stop a run with a snapshot; it is not started again")
    cancel.add_argument("run", metavar="RUN", help="the run's folder or job id")

    requeue = commands.add_parser("requeue", help="start a run again from a snapshot")
    requeue.add_argument("run", metavar="RUN", help="the run's folder or job id")
    requeue.add_argument("--nodes", type=_count, metavar="M", help="on so many nodes [as before]")

    job = commands.add_parser(
        "job",
        help="for the script of a Slurm job: note its start; requeue it after it stopped",
        usage="python -m launch job {started,stopped} [--max_requeues R] -- <arguments of main.py>",
    )
    job.add_argument("event", choices=("started", "stopped"))
    job.add_argument("--max_requeues", type=_number, default=DEFAULT_MAX_REQUEUES, metavar="R")

    commands.add_parser(
        "doctor",
        help="check devices, network, file system and data in under a minute",
        usage="python -m launch doctor <arguments of main.py>, under any of the launchers",
    )
    return parser


def _number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}': a whole number expected")
    return int(text)


def _count(text: str) -> int:
    number = _number(text)
    if number == 0:
        raise argparse.ArgumentTypeError("at least 1 expected")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
