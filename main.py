"""Parse, launch, dispatch on --mode."""

from __future__ import annotations

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
        launch = config[LaunchOptions]
        place = rank_place(launch)
        if place is None:
            for note in config.notes:
                print(f"note: {note}", file=sys.stderr)
            return Agent([sys.executable, __file__, *argv], find_topology(launch), config).run()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE

    live_with_agent(launch.rank_timeout)  # before torch is imported, which can take long on a shared disk
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from evaluators.run import PeriodicEvaluation, evaluate  # torch takes seconds, and the agent does not need it
    from evaluators.settings import check_evaluation, compares_with_data
    from launch.worker import run_rank
    from trainers.run import load_model, train
    from util.distributed import Distributed
    from util.stop import StopRequest

    def work(config: Config, distributed: Distributed, stop: StopRequest) -> None:
        run, needs_data = config[RunOptions], compares_with_data(config)
        check_evaluation(config, find_system(run.system).has_likelihood)
        if run.trains:
            train(config, distributed, stop, PeriodicEvaluation, needs_data)
        else:
            evaluate(config, distributed, stop, partial(load_model, needs_data=needs_data))

    return run_rank(config, place, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
