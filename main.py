"""Parse, launch, dispatch on --mode."""

import logging
import sys
from collections.abc import Sequence
from functools import partial

from evaluators.options import EvaluationOptions, PeriodicEvaluationOptions
from launch.agents.agent import Agent
from launch.agents.beat import live_with_agent
from launch.options import LaunchOptions
from launch.places.topology import find_topology, rank_place
from trainers.systems import SHARED, SYSTEMS, find_system
from util.command_line import parse
from util.config import Catalogue, Config
from util.errors import EXIT_USAGE, UsageError
from util.run_options import RunOptions

OPTIONS = Catalogue((*SHARED, LaunchOptions, EvaluationOptions, PeriodicEvaluationOptions), SYSTEMS, find_system)


def parse_config(argv: Sequence[str]) -> Config:
    """The configuration of a command line. Raises as ``util.command_line.parse``."""
    return parse(argv, OPTIONS)


def main(argv: list[str]) -> int:
    """The exit code: 0 finished, 75 stopped with a snapshot on disk, 1 failed, 2 usage."""
    try:
        config = parse_config(argv)
        place = rank_place(config[LaunchOptions])
        if place is None:
            print(*(f"note: {note}\n" for note in config.notes), sep="", end="", file=sys.stderr)
            return Agent([sys.executable, __file__, *argv], find_topology(config[LaunchOptions]), config).run()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE

    live_with_agent(config[LaunchOptions].rank_timeout)  # before torch is imported, which can take long
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from evaluators.run import PeriodicEvaluation, evaluate  # torch takes seconds, and the agent does not need it
    from launch.worker import run_rank
    from trainers.run import load_model, train

    trains = config[RunOptions].trains
    return run_rank(config, place, partial(train, PeriodicEvaluation) if trains else partial(evaluate, load_model))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
