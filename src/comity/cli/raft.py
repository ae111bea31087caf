"""``comity raft``: members of a built-in Raft that run by themselves, for networks whose log it is (``--log raft://...``)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.command import Cli, command, commands
from comity.cli.looks import bold, paint

if TYPE_CHECKING:
    from comity.log.raft import RaftLog

app = commands("Members of the built-in Raft: serve, keys, status, hand-over, add, remove.")

AGAIN_S = 0.1
PATIENCE_S = 30.0
_CLUSTER: dict[str, Any] = {"metavar": "NAME", "help": "Its name: a log is of one cluster, and of one network."}
Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="Where it is: raft://HOST:PORT,HOST:PORT/CLUSTER.")]


@command(app, connects=False)
async def serve(
    cli: Cli,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where its log is.")],
    members: Annotated[
        str | None, typer.Option("--members", metavar="ID=HOST:PORT,...", help="The founding members; none: it joins later.")
    ] = None,
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Which of them this one is.")] = None,
    cluster: Annotated[str | None, typer.Option("--cluster", **_CLUSTER)] = None,
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="If not where others reach it.")] = None,
    keys: Annotated[Path | None, typer.Option("--keys", metavar="FOLDER", help="Its certificates: comity raft keys.")] = None,
    election: Annotated[float | None, typer.Option("--election", metavar="SECONDS", help="Campaign after that long.")] = None,
    heartbeat: Annotated[float | None, typer.Option("--heartbeat", metavar="SECONDS", help="A leader's sign of life.")] = None,
) -> None:
    """Be a member, in the foreground: keep a copy of the log, and vote.

    The same --members on each of the first ones. Ctrl-C stops it; started again on the same folder it carries on.
    """
    import logging

    from comity.cli.logs import configure
    from comity.cli.raft_member import OwnMember, address_of, start_member, told
    from comity.errors import BadSettings
    from comity.raft.contact import parse_members

    configure(logging.DEBUG if cli.output.debug else logging.WARNING, as_json=cli.output.as_json)
    times = {"election_s": election, "heartbeat_s": heartbeat}
    flags = {**(told(members, id, keys) or {}), **{name: value for name, value in times.items() if value is not None}}
    settings = cli.settings(raft=flags or None)
    founders = parse_members(settings.raft.members)
    own = settings.raft.id
    if not own or not (founders or listen):
        raise BadSettings("say which member this is: --id, with --members, or --listen if it joins later", setting="raft")
    at = address_of(own, founders) if founders else ""
    member = OwnMember(
        cluster=cluster or settings.network, id=own, listen=listen or at, members=founders, keys=settings.raft.keys
    )
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    server = await start_member(folder, member, settings.raft, at)
    torn = server.torn
    if cli.output.as_json:
        cli.output.line({"id": own, "cluster": member.cluster, "address": server.address, "torn": torn and torn._asdict()})
    else:
        cli.output.say(f"{paint('green', '●')} member {bold(own)} of cluster {bold(member.cluster)} takes part")
        cut = f"{torn.name}: {torn.size} bytes of a write that was cut short, at {torn.offset}" if torn is not None else None
        cli.output.facts([("listening", member.listen), ("data", folder), ("cut off", cut)])
    waits = [asyncio.create_task(asked.wait()), asyncio.create_task(server.wait())]
    done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await server.leave()
    for ended in done - {waits[0]}:
        ended.result()


@command(app, connects=False)
async def keys(
    cli: Cli,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to put them.")],
    members: Annotated[str, typer.Option("--members", metavar="ID=HOST:PORT,...", help="For whom.")],
    cluster: Annotated[str | None, typer.Option("--cluster", **_CLUSTER)] = None,
) -> None:
    """Make certificates, with which members listen beyond this machine: a folder for each, to be copied there.

    Those that are there stay. Whoever has FOLDER/tls can let in others: keep it where it is.
    """
    from comity.cli.raft_keys import make_keys
    from comity.raft.contact import parse_members

    made = make_keys(folder, cluster or cli.settings().network, parse_members(members))
    if cli.output.as_json:
        cli.output.show([str(path) for path in made])
        return
    for path in made:
        cli.output.say(f"{paint('green', '✓')} {path}")


@command(app, connects=False)
async def status(
    cli: Cli,
    address: Annotated[
        str, typer.Argument(metavar="[ADDRESS]", help="raft://HOST:PORT,HOST:PORT/CLUSTER (default: the log of this network).")
    ] = "",
) -> None:
    """Each member's role, term, commit and applied index. Exits 3 if nobody leads."""
    from comity.cli.elsewhere import look_at_raft
    from comity.cli.raft_looks import leader_of, show
    from comity.contexts import resolve
    from comity.errors import AccessDenied, BadSettings, Unreachable

    address = address or resolve(cli.loaded()).doors.get("log", "")
    if not address.startswith("raft"):
        raise BadSettings("no built-in Raft is known here: name one, raft://HOST:PORT,HOST:PORT/CLUSTER", setting="doors")
    found, hidden = await look_at_raft({"log": address}, cli.settings().network)
    if hidden:
        raise AccessDenied(hidden)
    if cli.output.as_json:
        cli.output.show(found)
    else:
        show(found, cli.output)
        for row in found:
            if row["fault"]:
                cli.output.note(f"{row['id'] or 'a member'}: {row['fault']}")
    if not leader_of(found):
        raise Unreachable("; ".join(row["fault"] for row in found if row["fault"]) or "nobody leads")


@command(app, "hand-over", connects=False)
async def hand_over(cli: Cli, address: Address, id: Annotated[str, typer.Argument(metavar="ID", help="Who shall lead.")]) -> None:
    """Have another member lead, such as before the leader's machine is stopped."""
    from comity.errors import BadInput, Disconnected, Unreachable

    log = await _log(cli, address)
    try:
        known = await log.status()
        if id not in known["voters"]:
            raise BadInput(f"{id!r} is not among the members {', '.join(known['voters'])}", value=id)
        if id in known["troubles"]:
            raise Unreachable(f"{known['leader']} cannot reach {id}: {known['troubles'][id]}")
        if known["leader"] != id:
            with contextlib.suppress(Disconnected):  # whoever was asked leads no more
                await log.hand_over(id)  # once: the log takes nothing meanwhile
        async with _limit(f"{id} does not lead: it may lack too much"):
            while (await log.status())["leader"] != id:  # noqa: ASYNC110 - what other processes decide
                await asyncio.sleep(AGAIN_S)
    finally:
        await log.close()


@command(app, connects=False)
async def add(
    cli: Cli,
    address: Address,
    member: Annotated[str, typer.Argument(metavar="ID=HOST:PORT", help="It runs already, started without --members.")],
    instead: Annotated[str | None, typer.Option("--instead-of", metavar="ID", help="Who goes, as it comes.")] = None,
) -> None:
    """Let another member learn the log, and then vote. Never one with an empty folder under an id that has voted."""
    from comity.errors import BadInput, Conflict
    from comity.raft.contact import parse_members

    (id, at), *more = parse_members(member).items() or [("", "")]
    if more or not id:
        raise BadInput("one at a time: ID=HOST:PORT", value=member)
    log = await _log(cli, address)
    try:
        known = await log.status()
        if id in known["voters"]:
            raise Conflict(f"{id} is a member that votes already", member=id)
        left = [voter for voter in known["voters"] if voter != instead]
        if instead is not None and len(left) == len(known["voters"]):
            raise BadInput(f"{instead!r} is not among the members {', '.join(known['voters'])}", value=instead)
        others = [learner for learner in known["learners"] if learner != id]
        async with _limit(f"{id} has not caught up: does it run at {at}?"):
            await _become(log, known["voters"], [*others, id], {id: at})
            while not await _become(log, [*left, id], others, {}):  # noqa: ASYNC110 - what another process does
                await asyncio.sleep(AGAIN_S)
    finally:
        await log.close()


@command(app, connects=False)
async def remove(cli: Cli, address: Address, id: Annotated[str, typer.Argument(metavar="ID", help="Who goes.")]) -> None:
    """Have a member take part no more; stop it then. Its id cannot be used again."""
    from comity.errors import BadInput

    log = await _log(cli, address)
    try:
        known = await log.status()
        if id not in (*known["voters"], *known["learners"]):
            raise BadInput(f"{id!r} is not among the members {', '.join([*known['voters'], *known['learners']])}", value=id)
        voters, learners = ([member for member in known[kind] if member != id] for kind in ("voters", "learners"))
        async with _limit(f"the members have not agreed that {id} takes part no more"):
            await _become(log, voters, learners, {})
    finally:
        await log.close()


async def _become(log: RaftLog, voters: list[str], learners: list[str], addresses: dict[str, str]) -> bool:
    """Have that membership, unless who is to vote lacks too much still. A leader that goes by it may not answer: then the next
    one tells what became of it."""
    from comity.errors import Conflict, Disconnected

    while True:
        try:
            await log.change(voters, learners, addresses)
            return True
        except Conflict as error:
            if error.details.get("reason") == "behind":
                return False
            if error.details.get("reason") != "changing":
                raise
        except Disconnected:
            pass
        known = await log.status()
        if not known["outgoing"] and (set(known["voters"]), set(known["learners"])) == (set(voters), set(learners)):
            return True
        await asyncio.sleep(AGAIN_S)


@contextlib.asynccontextmanager
async def _limit(why: str) -> AsyncIterator[None]:
    from comity.errors import TimedOut

    try:
        async with asyncio.timeout(PATIENCE_S):
            yield
    except TimeoutError:
        raise TimedOut(why) from None


async def _log(cli: Cli, address: str) -> RaftLog:
    from comity.backends import members
    from comity.log.raft import RaftLog

    at, cluster, tls = members(address, cli.settings().network)
    return await RaftLog.open(at, cluster, tls=tls)
