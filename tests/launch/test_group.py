"""What agent 0 decides, without sockets and with a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

from launch.agents.fingerprint import code_versions, difference, fingerprint
from launch.agents.group import Group, Limits, Refused, ended_message
from launch.agents.reports import FailureReport
from tests.configuration import configured


class Cluster:
    """A group, and everything it says to each agent."""

    def __init__(self, n_agents: int, max_restarts: int = 0) -> None:
        self.said: dict[int, list[tuple[str, dict[str, Any]]]] = {rank: [] for rank in range(n_agents)}
        limits = Limits(rendezvous=60.0, node=10.0, max_restarts=max_restarts)
        self.ports = iter(range(100, 200))
        self.group = Group(n_agents, "id", limits, self._send, lambda: next(self.ports), 0.0)

    def _send(self, agent_rank: int, kind: str, fields: dict[str, Any]) -> None:
        self.said[agent_rank].append((kind, fields))

    def register(self, agent_rank: int, changes: dict[str, Any] | None = None) -> None:
        message = {
            "kind": "register", "run_id": "id", "agent_rank": agent_rank, "n_agents": self.group.n_agents,
            "place": f"node {agent_rank} (host{agent_rank})", "host": f"host{agent_rank}", "n_ranks": 2,
            "fingerprint": {"--seed": "0"},
        }  # fmt: skip
        self.group.admit({**message, **(changes or {})}, 1.0)
        self.group.start_if_complete(1.0)

    def ended(self, agent_rank: int, code: int = 0, failure: FailureReport | None = None, now: float = 2.0) -> None:
        self.group.handle(agent_rank, {"kind": "ended", **ended_message(code, failure)}, now)

    def verdicts(self) -> list[tuple[int, str]]:
        """(code, line) for each agent that has a verdict, all of which have to be the same."""
        found = [fields for said in self.said.values() for kind, fields in said if kind == "verdict"]
        assert len({(fields["code"], fields["line"]) for fields in found}) <= 1
        return [(fields["code"], fields["line"]) for fields in found]


def report(rank: int, kind: str = "error", time: float = 0.0, consequence: bool = False) -> FailureReport:
    return FailureReport(rank, f"host{rank}", time, kind, f"message {rank}", "traceback\n", consequence)


@pytest.fixture
def running() -> Cluster:
    cluster = Cluster(2)
    cluster.register(1)
    cluster.register(0)
    return cluster


def test_agent_0_is_reminded_of_those_that_are_missing() -> None:
    cluster = Cluster(3)
    cluster.register(0)
    for now in (1.0, 5.5, 6.0, 10.0, 10.6):
        cluster.group.tick(now)
    missing = {"missing": "number 1, 2 of 3 nodes (or processes)"}
    assert cluster.said == {0: [("waiting", missing)] * 2, 1: [], 2: []}


def test_ranks_are_numbered_in_the_order_of_agents_whatever_their_number() -> None:
    cluster = Cluster(3)
    cluster.register(2, {"n_ranks": 4})
    cluster.register(0, {"n_ranks": 8})
    assert not cluster.said[0]
    cluster.register(1, {"n_ranks": 1})
    starts = [cluster.said[rank][-1][1] for rank in range(3)]
    assert [start["first_rank"] for start in starts] == [0, 8, 9]
    assert {start["world_size"] for start in starts} == {13}
    assert {start["port"] for start in starts} == {100}


def test_all_finished(running: Cluster) -> None:
    running.ended(0)
    assert running.verdicts() == []
    running.ended(1)
    assert running.verdicts() == [(0, "")] * 2


def test_one_preempted_and_the_consequences(running: Cluster) -> None:
    running.ended(1, 75)
    assert running.said[0][-1] == ("ending", {})
    running.ended(0, 0, report(0, consequence=True))
    assert running.verdicts() == [(75, "")] * 2


def test_a_failure_beside_a_preemption_is_a_failure(running: Cluster) -> None:
    running.ended(1, 75)
    running.ended(0, 0, report(0))
    assert running.verdicts() == [(1, "rank 0 on host0 failed: message 0")] * 2


def test_the_cause_is_shown_not_its_consequence(running: Cluster) -> None:
    running.ended(0, 0, report(0, time=1.0, consequence=True))
    running.ended(1, 0, report(3, "killed", time=2.0))
    assert running.verdicts() == [(1, "rank 3 on host3 message 3")] * 2


def test_usage_errors_have_their_own_code_and_no_restart() -> None:
    cluster = Cluster(1, max_restarts=5)
    cluster.register(0)
    cluster.ended(0, 0, report(0, "usage"))
    assert cluster.verdicts() == [(2, "error: message 0")]


def test_restarts_until_they_are_used_up() -> None:
    cluster = Cluster(2, max_restarts=1)
    cluster.register(0)
    cluster.register(1)
    for _ in range(2):
        cluster.ended(0, 0, report(0, consequence=True))
        cluster.ended(1, 0, report(2))
    starts = [fields for kind, fields in cluster.said[0] if kind == "start"]
    assert [start["n_restarts"] for start in starts] == [0, 1]
    assert starts[0]["port"] != starts[1]["port"]
    assert "message 2" in starts[1]["cause"]
    assert cluster.verdicts() == [(1, "rank 2 on host2 failed: message 2")] * 2


def test_a_silent_node_ends_the_run(running: Cluster) -> None:
    running.group.handle(0, {"kind": "heartbeat"}, 9.0)
    running.group.tick(10.9)
    assert running.verdicts() == []
    running.group.tick(11.1)
    running.ended(0, now=11.2)
    assert running.verdicts() == [(1, "node 1 (host1) was not heard of for 10 s (--node_timeout)")]


def test_a_pause_of_agent_0_is_nobodys_silence(running: Cluster) -> None:
    running.group.forgive(500.0)
    running.group.tick(501.0)
    assert running.verdicts() == []


def test_a_lost_connection_ends_the_run_without_a_restart() -> None:
    cluster = Cluster(2, max_restarts=3)
    cluster.register(0)
    cluster.register(1)
    cluster.group.lost(1, "connection closed", 3.0)
    cluster.ended(0, 0, report(0, consequence=True))
    assert cluster.verdicts() == [(1, "node 1 (host1) went away: connection closed")]


def test_an_agent_that_does_not_answer_is_not_waited_for(running: Cluster) -> None:
    running.ended(0, 0, report(0, consequence=True), now=2.0)
    running.group.handle(1, {"kind": "heartbeat"}, 11.0)
    running.group.tick(11.0)
    assert running.verdicts() == [(1, "node 1 (host1) did not say what became of its ranks")]


def test_a_node_that_does_not_come() -> None:
    cluster = Cluster(3)
    cluster.register(0)
    cluster.register(2)
    cluster.group.tick(61.0)
    code, line = cluster.verdicts()[0]
    assert code == 1
    assert "number 1 did not come within 60 s" in line
    assert "node 0 (host0), node 2 (host2)" in line


def test_a_node_may_come_again_before_the_start() -> None:
    cluster = Cluster(2)
    cluster.register(1)
    cluster.group.lost(1, "connection closed", 2.0)
    cluster.register(1)
    cluster.register(0)
    assert cluster.said[0][-1][0] == "start"


def test_stopped_before_the_others_came() -> None:
    cluster = Cluster(3)
    cluster.register(0)
    cluster.register(2)
    cluster.ended(2, 75)
    assert cluster.verdicts() == [(75, "")] * 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"agent_rank": 0, "place": "node 0 (other)"}, ["node 0 (host0)", "node 0 (other)", "--node_rank"]),
        ({"n_agents": 3}, ["node 1 (host1) was started as one of 3", "node 0 (host0) as one of 2"]),
        ({"agent_rank": 7}, ["--node_rank 7"]),
        ({"fingerprint": {"--seed": "1"}}, ["--seed is 0 on node 0 (host0) and 1 on node 1 (host1)"]),
    ],
)
def test_nodes_that_do_not_fit_end_the_run(changes: dict[str, Any], named: list[str]) -> None:
    cluster = Cluster(2)
    cluster.register(0)
    with pytest.raises(Refused):
        cluster.register(1, changes)
    code, line = cluster.verdicts()[0]
    assert code == 2
    assert all(part in line for part in named), line


@pytest.mark.parametrize("changes", [{"run_id": "another"}, {"agent_rank": "x"}, {"fingerprint": 3}, {"n_ranks": None}])
def test_strangers_are_refused_and_change_nothing(changes: dict[str, Any]) -> None:
    cluster = Cluster(2)
    cluster.register(0)
    with pytest.raises(Refused):
        cluster.register(1, changes)
    cluster.register(1)
    assert cluster.said[1][-1][0] == "start"


def test_a_late_agent_does_not_disturb_a_run(running: Cluster) -> None:
    with pytest.raises(Refused, match="started already"):
        running.register(1, {"place": "node 1 (late)"})
    assert running.verdicts() == []


def test_fingerprints_name_what_differs() -> None:
    config = configured()
    first = fingerprint(config.flat())
    assert difference(first, "a", fingerprint(configured().flat()), "b") == ""
    config = config.with_values(seed=9, node_rank=3, data_location="/scratch")
    assert difference(first, "a", fingerprint(config.flat()), "b") == "--seed is 0 on a and 9 on b"
    assert code_versions().items() <= first.items()
