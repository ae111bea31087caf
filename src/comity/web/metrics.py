"""OpenMetrics of a controller, on ``/metrics``. Every key figure of ``comity stats`` has its metric; labels stay few: state,
node, and the fifty busiest agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector

ANSWER_S = 5.0

Metric = GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily

_MACHINE = (
    ("disk_free_bytes", "comity_controller_disk_free_bytes", "Free on the disk that holds the controller's data"),
    ("open_files_limit", "comity_controller_open_files_limit", "Files that the controller may have open"),
)
_TOTALS = {
    "submitted": "Tasks taken in",
    "completed": "Tasks that completed",
    "failed": "Tasks that failed",
    "canceled": "Tasks that were canceled",
    "retries": "Attempts that failed and were tried again",
    "requeues": "Attempts handed back without using a retry",
    "evictions": "Nodes whose lease was ended",
    "stuck": "Attempts moved because they showed no progress",
    "poisoned": "Tasks given up because they took nodes down",
    "fired": "Tasks submitted by a schedule",
    "replayed": "Dead letters replayed",
    "rejected_reports": "Reports with an epoch that was no longer current",
}


class NetworkCollector(Collector):
    """Turns ``stats()`` into metrics at each scrape."""

    def __init__(self, stats: Callable[[], dict[str, Any]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        leads = stats["role"] == "leader"
        yield _gauge("comity_leader", "1 if this controller leads", [((), float(leads))])
        yield _gauge("comity_term", "The log's term", [((), stats["term"])])
        yield _gauge("comity_log_head", "Index of the last log entry applied", [((), stats["log_head"])])
        info = InfoMetricFamily("comity_network", "Which network, who leads it, how durable its log is")
        durability = stats.get("log_durability", "unknown")
        info.add_metric([], {"network": stats["network"], "leader": stats["leader"], "durability": durability})
        yield info
        yield from _of_machine(stats["controller"])
        if leads:
            yield from _of_leader(stats)


def _of_machine(controller: dict[str, Any]) -> Iterator[Metric]:
    for field, name, help_ in _MACHINE:
        yield _gauge(name, help_, [((), float(controller[field]))] if field in controller else [])


def _of_leader(stats: dict[str, Any]) -> Iterator[Metric]:
    yield _gauge("comity_snapshot", "Index of the log entry that the newest snapshot holds", [((), stats["snapshot"])])
    yield _gauge("comity_tasks", "Tasks by state", _by_key(stats["tasks"]), ["state"])
    for name, help_ in _TOTALS.items():
        counter = CounterMetricFamily(f"comity_{name}", help_)
        counter.add_metric([], stats["totals"][name])
        yield counter
    refused = CounterMetricFamily("comity_refused_submits", "Submits refused, overload included")
    refused.add_metric([], stats["refused_submits"])
    yield refused
    malformed = CounterMetricFamily("comity_malformed_messages", "Messages and records that could not be read")
    malformed.add_metric([], stats["malformed_messages"])
    yield malformed
    yield _gauge("comity_dead_letters", "Failed tasks kept to be replayed", [((), stats["dead_letters"])])
    mail = stats["mail"]
    kept = {state: mail[state] for state in ("waiting", "dead")}
    yield _gauge("comity_mail", "Durable mail that waits to be taken, and that is dead", _by_key(kept), ["state"])
    for what, help_ in (("posted", "taken in"), ("taken", "acknowledged, by receiver"), ("buried", "not taken: dead letters")):
        yield _counter(f"comity_mail_{what}", f"Durable mail {help_}", [((), mail[what])])
    yield _gauge("comity_schedules", "Schedules", [((), stats["schedules"])])
    yield _gauge("comity_held_retries", "Retries held back by their budget", [((), stats["held_retries"])])
    yield _counter("comity_elections", "Controllers that came to lead, since the network began", [((), stats["term"])])
    yield _counter("comity_events", "Events since this controller leads", _by_key(stats["events"]), ["type"])
    overload = _by_key(stats["refused_overload"])
    yield _counter("comity_overload_refusals", "Submits refused by the limit of what may wait", overload, ["limit"])
    yield _gauge("comity_waiting", "What waits for an agent: tasks, bytes of input", _of_limits(stats["waiting"]), ["what"])
    yield _gauge("comity_waiting_limit", "What may wait", _of_limits(stats["limits"]), ["what"])
    yield _gauge("comity_breakers", "Agents that failed too often at a capability", _by_key(stats["breakers"]), ["state"])
    lag = stats["loop_lag"]["max_ms"] / 1000
    yield _gauge("comity_leader_lag_seconds", "Worst lag of the leader's event loop within ten seconds", [((), lag)])
    damaged = stats["storage"]["damaged"]
    yield _gauge("comity_storage_damaged", "Places in the log and the store that are damaged", [((), damaged)])
    yield _gauge("comity_oldest_waiting_seconds", "Age of the oldest task that waits", [((), stats["oldest_waiting_s"])])
    yield _gauge("comity_nodes", "Nodes by membership state", _by_key(stats["nodes"]), ["state"])
    yield _gauge("comity_agents", "Agents by status", _by_key(stats["agents"]), ["status"])
    nodes = stats["per_node"]
    yield _gauge("comity_node_cpu", "Cores a node process uses", _of_nodes(nodes, "cpu"), ["node"])
    yield _gauge("comity_node_memory_megabytes", "Memory of a node process", _of_nodes(nodes, "memory_mb"), ["node"])
    yield _gauge("comity_node_lag_seconds", "Worst event-loop lag since the last beacon", _of_nodes(nodes, "lag_s"), ["node"])
    ahead = _of_nodes(nodes, "clock_ahead_s")
    yield _gauge("comity_node_clock_offset_seconds", "By how much a node's clock is ahead of the leader's", ahead, ["node"])
    yield _gauge("comity_node_attempts", "Attempts on a node", _of_nodes(nodes, "attempts"), ["node"])
    loads = [((agent["id"],), float(agent["load"])) for agent in stats["per_agent"]]
    yield _gauge("comity_agent_load", "Attempts and calls in flight at the busiest agents", loads, ["agent"])


def _gauge(name: str, help_: str, values: Iterable[tuple[tuple[str, ...], float]], labels: Iterable[str] = ()) -> Metric:
    gauge = GaugeMetricFamily(name, help_, labels=list(labels))
    for key, value in values:
        gauge.add_metric(list(key), value)
    return gauge


def _counter(name: str, help_: str, values: Iterable[tuple[tuple[str, ...], float]], labels: Iterable[str] = ()) -> Metric:
    counter = CounterMetricFamily(name, help_, labels=list(labels))
    for key, value in values:
        counter.add_metric(list(key), value)
    return counter


def _of_limits(stats: dict[str, int]) -> list[tuple[tuple[str, ...], float]]:
    return _by_key({what: stats[what] for what in ("tasks", "bytes")})


def _by_key(counts: dict[str, int]) -> list[tuple[tuple[str, ...], float]]:
    return [((key,), float(count)) for key, count in counts.items()]


def _of_nodes(nodes: list[dict[str, Any]], field: str) -> list[tuple[tuple[str, ...], float]]:
    return [((node["id"],), float(node[field])) for node in nodes if node[field] is not None]


def registry(stats: Callable[[], dict[str, Any]]) -> CollectorRegistry:
    """A registry of the network's metrics; ``stats`` is called at each scrape."""
    made = CollectorRegistry(auto_describe=False)
    made.register(NetworkCollector(stats))
    return made


class MetricsServer:
    """``/metrics`` on 127.0.0.1:``port`` (0: any), in a thread of its own; ``stats`` is called in the event loop that made this.
    Raises OSError if the port is taken."""

    def __init__(self, stats: Callable[[], dict[str, Any]], port: int) -> None:
        loop = asyncio.get_running_loop()

        async def read() -> dict[str, Any]:
            return stats()

        def ask() -> dict[str, Any]:
            return asyncio.run_coroutine_threadsafe(read(), loop).result(timeout=ANSWER_S)

        self._server, self._thread = start_http_server(port, addr="127.0.0.1", registry=registry(ask))
        self.port = int(self._server.server_port)

    async def stop(self) -> None:
        """Answer what is being asked, then listen no longer."""
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
