"""``python -m comity.raft FOLDER --cluster NAME --id ID --listen HOST:PORT --members ID=HOST:PORT,...``: be a member.

Until SIGTERM. Says one line of JSON once it takes part: its id, its address, and what was cut off its log's end. Exit code 2: it
cannot be one. It listens on this machine only; ``comity raft serve`` is the same by TLS, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from ipaddress import ip_address
from pathlib import Path

import uvloop

from comity.core.raft_events import Timing
from comity.errors import BadSettings, ComityError
from comity.raft.contact import parse_address, parse_members
from comity.raft.server import RaftServer


async def _serve(given: argparse.Namespace) -> int:
    timing = Timing(election_s=given.election, heartbeat_s=given.heartbeat)
    about = {"cluster": given.cluster, "id": given.id, "listen": given.listen}
    try:
        if not is_near(given.listen):
            raise BadSettings("beyond this machine a member needs TLS: comity raft serve --keys", setting="listen")
        members = parse_members(given.members) or None
        server = await RaftServer.start(given.folder, members=members, timing=timing, **about)
    except ComityError as error:
        _say({"error": {"code": error.code, "message": error.message, "details": error.details}})
        return 2
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    _say({"id": server.id, "address": server.address, "torn": server.torn and server.torn._asdict()})
    await ended.wait()
    await server.close()
    return 0


def is_near(listen: str) -> bool:
    """Whether that is reached from this machine only. Raises BadSettings."""
    host, _ = parse_address(listen)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m comity.raft", description="Be a member of a built-in Raft.")
    parser.add_argument("folder", type=Path, help="where its log is")
    parser.add_argument("--cluster", required=True, help="whose member it is: its data can be no other's")
    parser.add_argument("--id", required=True)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--members", default="", metavar="ID=HOST:PORT,...", help="the founding members; none: it joins later")
    parser.add_argument("--election", type=float, default=Timing().election_s, metavar="S")
    parser.add_argument("--heartbeat", type=float, default=Timing().heartbeat_s, metavar="S")
    return uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
