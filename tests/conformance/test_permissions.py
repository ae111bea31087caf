"""What credentials let a process do, tried against a real server: its own work, and attacks."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from comity.credentials import Authority, Credentials
from comity.log import jetstream as log
from comity.registry import jetstream as registry
from comity.store import jetstream as store
from conftest import RealNetwork

pytestmark = pytest.mark.server


class Actor:
    """A client that keeps what the server says against it."""

    def __init__(self, nc: Client, refusals: list[str]) -> None:
        self.nc = nc
        self.refusals = refusals

    async def settle(self) -> list[str]:
        """What the server refused since the last call. The server answers in order, so a PONG is the end of it."""
        await self.flush()
        said, self.refusals[:] = list(self.refusals), []
        return [text for text in said if "permissions violation" in text]

    async def unrefused(self, subjects: list[str]) -> list[str]:
        """Those of ``subjects`` of which the server has not complained."""
        said = await self.settle()
        return [subject for subject in subjects if not any(f'"{subject.lower()}"' in text for text in said)]

    async def flush(self) -> None:
        """Twice, because this client's PING overtakes what waits to be written; the second one cannot."""
        await self.nc.flush()
        await self.nc.flush()

    async def ask(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = json.dumps(body).encode() if body is not None else b""
        answer: dict[str, Any] = json.loads((await self.nc.request(subject, data, timeout=20)).data)
        return answer

    async def put(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((await self.nc.request(subject, data, timeout=20, headers=headers)).data)
        return answer


async def act(network: RealNetwork, role: Any, process: str) -> Actor:
    refusals: list[str] = []

    async def refused(error: Exception) -> None:
        refusals.append(str(error).lower())

    return Actor(await network.connect(role, process, error_cb=refused), refusals)


class Cast:
    """A controller, two nodes, a client, one who makes backups, and the streams as a controller makes them."""

    def __init__(self, network: RealNetwork, ctl: Actor, n1: Actor, n2: Actor, c1: Actor, b1: Actor) -> None:
        self.net = f"cy.{network.network}"
        self.streams = {kind: f"CY_{network.network}_{kind.upper()}" for kind in ("log", "reg", "store")}
        self.ctl, self.n1, self.n2, self.c1, self.b1 = ctl, n1, n2, c1, b1

    async def heard(self, who: Actor, subject: str) -> list[Msg]:
        """A list that fills with what ``who`` hears on ``subject`` from now on."""
        found: list[Msg] = []

        async def keep(msg: Msg) -> None:
            found.append(msg)

        await who.nc.subscribe(subject, cb=keep)
        await who.flush()
        return found

    async def count(self, kind: str) -> int:
        info = await self.ctl.ask(f"$JS.API.STREAM.INFO.{self.streams[kind]}")
        return int(info["state"]["messages"])


@pytest_asyncio.fixture
async def cast(real_network: RealNetwork) -> AsyncIterator[Cast]:
    actors = [await act(real_network, role, name) for role, name in (
        ("controller", "ctl"), ("node", "n1"), ("node", "n2"), ("client", "c1"), ("backup", "b1"),
    )]  # fmt: skip
    cast = Cast(real_network, *actors)
    for module in (log, registry, store):
        config = module.stream_config(real_network.network, 1)
        assert "error" not in await cast.ctl.ask(f"$JS.API.STREAM.CREATE.{config['name']}", config)
        subject = str(config["subjects"][0]).replace(">", "ctl.first")
        await cast.ctl.put(subject, b"first")
    yield cast
    for actor in actors:
        await actor.nc.close()


async def test_a_node_does_its_own_work(cast: Cast) -> None:
    net, streams, n1 = cast.net, cast.streams, cast.n1
    heard = await cast.heard(cast.n2, f"{net}.to.n2.*")
    unreached = await cast.heard(n1, f"{net}.nr.n1.>")
    answers = await cast.heard(n1, f"{net}.re.n1.>")
    await cast.heard(n1, f"{net}.any.workers.*")
    await cast.heard(n1, f"{net}.topic.all.*")
    await n1.nc.publish(f"{net}.to.n2.n1", b"hello", reply=f"{net}.re.n1.7")
    await n1.nc.publish(f"{net}.to.n9.n1", b"anyone?", reply=f"{net}.nr.n1.to.n9")
    await n1.nc.publish(f"{net}.topic.leader.n1", b"beacon")
    assert await n1.settle() == []
    await cast.n2.settle()
    assert [msg.data for msg in heard] == [b"hello"]
    await cast.n2.nc.publish(heard[0].reply + ".n2", b"hello yourself")
    assert await cast.n2.settle() == []
    await n1.settle()
    assert [(msg.subject, msg.data) for msg in answers] == [(f"{net}.re.n1.7.n2", b"hello yourself")]
    assert [msg.headers["Status"] for msg in unreached if msg.headers] == ["503"]
    for kind in ("reg", "store"):
        assert (await n1.put(f"{net}.{kind}.n1.a.b", b"mine"))["seq"] == 2
        assert (await n1.ask(f"$JS.API.STREAM.MSG.GET.{streams[kind]}", {"seq": 1}))["message"]["seq"] == 1
        assert (await n1.ask(f"$JS.API.STREAM.INFO.{streams[kind]}"))["state"]["messages"] == 2
    found = await n1.nc.request(f"$JS.API.DIRECT.GET.{streams['store']}.{net}.store.n1.a.b", b"", timeout=20)
    assert found.data == b"mine"
    assert await n1.settle() == []


@pytest.mark.parametrize("kind", ["reg", "store"])
@pytest.mark.parametrize("who", ["n1", "c1"])
async def test_nodes_and_clients_read_the_streams_in_order(cast: Cast, kind: str, who: str) -> None:
    reader: Actor = getattr(cast, who)
    stream = cast.streams[kind]
    for at in range(3):
        await cast.n2.put(f"{cast.net}.{kind}.n2.{at}", str(at).encode())
    config = {"name": "mine", "ack_policy": "none", "filter_subject": f"{cast.net}.{kind}.n2.>", "mem_storage": True}
    made = await reader.ask(
        f"$JS.API.CONSUMER.CREATE.{stream}.mine.{cast.net}.{kind}.n2.>", {"stream_name": stream, "config": config}
    )
    assert "error" not in made
    inbox = reader.nc.new_inbox()
    pulled = await reader.nc.subscribe(inbox)
    await reader.nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.mine", b'{"batch": 3, "no_wait": true}', reply=inbox)
    assert [(await pulled.next_msg(timeout=20)).data for _ in range(3)] == [b"0", b"1", b"2"]
    assert (await reader.ask(f"$JS.API.CONSUMER.DELETE.{stream}.mine"))["success"] is True
    assert await reader.settle() == []


async def test_who_makes_backups_may_read_the_log_and_not_write_it(cast: Cast) -> None:
    reader, stream, subject = cast.b1, cast.streams["log"], f"{cast.net}.log"
    config = {"name": "mine", "ack_policy": "none", "filter_subject": subject, "mem_storage": True}
    body = {"stream_name": stream, "config": config}
    assert "error" not in await reader.ask(f"$JS.API.CONSUMER.CREATE.{stream}.mine.{subject}", body)
    assert (await reader.ask(f"$JS.API.STREAM.MSG.GET.{stream}", {"seq": 1}))["message"]["seq"] == 1
    await cast.heard(reader, f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream}")  # of a cluster
    assert await reader.settle() == []
    before = await cast.count("log")
    subjects = [subject, *(f"$JS.API.STREAM.{what}.{stream}" for what in ("PURGE", "DELETE", "MSG.DELETE"))]
    for forbidden in subjects:
        await reader.nc.publish(forbidden, b"{}", reply="_INBOX_b1.x")
    assert await reader.unrefused(subjects) == []
    assert await cast.count("log") == before


@pytest.mark.parametrize("who", ["n1", "c1", "b1"])
async def test_nobody_speaks_as_another(cast: Cast, who: str) -> None:
    attacker: Actor = getattr(cast, who)
    net = cast.net
    heard = await cast.heard(cast.ctl, f"{net}.>")
    stored = {kind: await cast.count(kind) for kind in cast.streams}
    subjects = [f"{net}.to.ctl.n2", f"{net}.any.workers.ctl", f"{net}.topic.leader.n2", f"{net}.re.ctl.1.n2", f"{net}.log"]
    subjects += [f"{net}.to.ctl.{who}.n2", f"{net}.nr.n2.to.x", f"{net}.re.ctl.1", "cy.other.to.x." + who, "_INBOX_ctl.x"]
    # The last ones have the attacker's name where a careless pattern would look for it.
    subjects += [f"{net}.{kind}.n2.{tail}" for kind in ("reg", "store") for tail in ("x", "x.y", who, f"x.{who}")]
    for subject in subjects:
        await attacker.nc.publish(subject, b"forged", reply=f"_INBOX_{who}.x")
    assert await attacker.unrefused(subjects) == []
    await cast.ctl.settle()
    assert [msg.subject for msg in heard if msg.data == b"forged"] == []
    assert {kind: await cast.count(kind) for kind in cast.streams} == stored


@pytest.mark.parametrize("who", ["n1", "c1", "b1"])
async def test_nobody_listens_for_another(cast: Cast, who: str) -> None:
    attacker: Actor = getattr(cast, who)
    net = cast.net
    subjects = [f"{net}.to.n2.*", f"{net}.to.*.*", f"{net}.re.n2.>", f"{net}.nr.n2.>", f"{net}.topic.leader.*"]
    subjects += ["_INBOX_n2.>", "_INBOX_ctl.x", "_INBOX.>", ">", "*.>", f"{net}.>", "cy.>", f"{net}.log", f"{net}.reg.>"]
    subjects += ["$JS.>", "$JS.API.>", "$JS.EVENT.>", "$SYS.>", f"{net}.store.ctl.>"]
    for subject in subjects:
        await attacker.nc.subscribe(subject)
    assert await attacker.unrefused(subjects) == []


async def test_a_wildcard_does_not_hear_what_is_for_the_leader(cast: Cast) -> None:
    heard = await cast.heard(cast.n2, f"{cast.net}.topic.*.*")
    queued: list[Msg] = []

    async def keep(msg: Msg) -> None:
        queued.append(msg)

    await cast.n2.nc.subscribe(f"{cast.net}.topic.>", queue="workers", cb=keep)
    await cast.n2.flush()
    leader = await cast.heard(cast.ctl, f"{cast.net}.topic.leader.*")
    await cast.n1.nc.publish(f"{cast.net}.topic.leader.n1", b"for the leader")
    await cast.n1.nc.publish(f"{cast.net}.topic.all.n1", b"for all")
    await cast.n1.settle()
    await cast.n2.settle()
    await cast.ctl.settle()
    assert [msg.data for msg in heard] == [b"for all"]
    assert [msg.data for msg in queued] == [b"for all"]
    assert [msg.data for msg in leader] == [b"for the leader"]


@pytest.mark.parametrize("who", ["n1", "c1"])
async def test_nobody_but_a_controller_changes_a_stream(cast: Cast, who: str) -> None:
    attacker: Actor = getattr(cast, who)
    before = {kind: await cast.count(kind) for kind in cast.streams}
    subjects = [f"$JS.API.STREAM.CREATE.{who}", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.INFO"]
    for stream in cast.streams.values():
        verbs = ("DELETE", "PURGE", "UPDATE", "MSG.DELETE", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN", "PEER.REMOVE")
        subjects += [f"$JS.API.STREAM.{verb}.{stream}" for verb in verbs]
        subjects += [f"$JS.API.CONSUMER.{verb}.{stream}" for verb in ("NAMES", "LIST", "CREATE")]
        subjects += [f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.mine"]
    log = cast.streams["log"]
    reads = ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET", "CONSUMER.CREATE")
    subjects += [f"$JS.API.{verb}.{log}" for verb in reads] + [f"$JS.API.CONSUMER.MSG.NEXT.{log}.x"]
    for subject in subjects:
        await attacker.nc.publish(subject, b'{"seq": 1}', reply=f"_INBOX_{who}.x")
    assert await attacker.unrefused(subjects) == []
    assert {kind: await cast.count(kind) for kind in cast.streams} == before


@pytest.mark.parametrize("kind", ["reg", "store"])
async def test_a_right_to_write_one_record_wipes_out_no_other(cast: Cast, kind: str) -> None:
    for headers in ({"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}):
        answer = await cast.n1.put(f"{cast.net}.{kind}.n1.x", b"all mine", headers)
        assert "rollup not permitted" in answer["error"]["description"]
    assert await cast.count(kind) == 1


async def test_a_consumer_reads_the_stream_its_maker_may_read(cast: Cast) -> None:
    """The request's body names another stream, or another filter, than the subject that the permission is for."""
    reg, stream = cast.streams["reg"], cast.streams["log"]
    subject = f"$JS.API.CONSUMER.CREATE.{reg}.sly.{cast.net}.reg.>"
    body = {"name": "sly", "ack_policy": "none", "filter_subject": f"{cast.net}.log"}
    for asked in ({"stream_name": stream, "config": body}, {"stream_name": reg, "config": body}):
        assert "error" in await cast.n1.ask(subject, asked)
    for name in (stream, reg):
        assert (await cast.ctl.ask(f"$JS.API.STREAM.INFO.{name}"))["state"]["consumer_count"] == 0


async def test_the_system_role_watches_connections_and_no_more(cast: Cast, real_network: RealNetwork) -> None:
    watch = await act(real_network, "system", "watch")
    gone = await cast.heard(watch, "$SYS.ACCOUNT.*.DISCONNECT")
    for subject in ("$SYS.REQ.SERVER.PING.KICK", "$SYS.REQ.SERVER.X.RELOAD", "$SYS.REQ.ACCOUNT.PING.CONNZ", f"{cast.net}.log"):
        await watch.nc.publish(subject, b"{}")
    assert len(await watch.settle()) == 4
    for subject in (f"{cast.net}.>", "$SYS.>", "$SYS.REQ.>", ">"):
        await watch.nc.subscribe(subject)
    assert len(await watch.settle()) == 4
    assert (await watch.ask("$SYS.REQ.SERVER.PING.VARZ"))["data"]["max_payload"] == 1048576
    await cast.n1.nc.close()
    async with asyncio.timeout(20):
        while not gone:
            await watch.nc.flush()
    event = json.loads(gone[0].data)
    assert event["client"]["name"] == "n1"
    assert event["client"]["acc"] == real_network.authority.account.public
    await watch.nc.close()


async def refused(url: str, **options: Any) -> str:
    nc = Client()
    with pytest.raises(NatsError) as caught:
        await nc.connect(url, connect_timeout=20, max_reconnect_attempts=0, allow_reconnect=False, **options)
    await nc.close()  # a client that was refused keeps its socket open
    return str(caught.value).lower()


async def test_strangers_are_refused(real_network: RealNetwork, tmp_path: Path) -> None:
    url, good = real_network.url, real_network.mint("node", "n1")
    other = Authority.create(tmp_path, real_network.network)
    header, body, signature = good.jwt.split(".")
    said = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    said["nats"]["pub"] = {"allow": [">"]}
    raised = base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")
    plain = base64.urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').decode().rstrip("=")
    mixed = dataclasses.replace(other, account=other.account, operator=real_network.authority.operator)
    strangers = {
        "no credentials": {},
        "a name and a password": {"user": "n1", "password": "n1"},
        "another network's credentials": other.mint("node", "n1").connect_options(),
        "a controller of another network": mixed.mint("controller", "ctl").connect_options(),
        "a token without its key": good._replace(seed=other.mint("node", "n1").seed).connect_options(),
        "altered claims": Credentials(f"{header}.{raised}.{signature}", good.seed).connect_options(),
        "an unsigned token": Credentials(f"{plain}.{raised}.", good.seed).connect_options(),
        "an expired token": real_network.mint("node", "n1", ttl_s=-1).connect_options(),
    }
    for who, options in strangers.items():
        said_to = await refused(url, **options)
        assert "authorization violation" in said_to or "authentication expired" in said_to, who
    nc = await real_network.connect("node", "n1")
    await nc.close()


async def test_a_connection_ends_when_its_token_expires(real_network: RealNetwork) -> None:
    closed = asyncio.Event()

    async def ended() -> None:
        closed.set()

    options = real_network.mint("node", "n1", ttl_s=3.5).connect_options()
    nc = await nats.connect(
        real_network.url, closed_cb=ended, max_reconnect_attempts=0, allow_reconnect=False, error_cb=_ignore, **options
    )
    async with asyncio.timeout(10):
        await closed.wait()
    assert nc.is_closed


async def _ignore(error: Exception) -> None:
    """The refusal is what the test waits for."""
