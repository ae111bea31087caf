"""Frames, as they may come: in any pieces, and from who means no good."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp import frame as frames
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from comity.amqp.connection import ASKING, CONSUMING, PUBLISHING, Connection, Properties, Refusal
from comity.errors import Disconnected


class Wire(asyncio.Transport):
    """Takes what is written; an abort is told at once."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.written = b""
        self.is_over = False
        self._protocol = protocol
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._protocol.connection_lost(None)


def connected() -> tuple[Connection, Wire]:
    connection = Connection()
    return connection, Wire(connection)


def message(body: bytes, piece: int, method: Frame, properties: Properties) -> bytes:
    sent = frames.marshal(method, CONSUMING) + frames.marshal(ContentHeader(0, len(body), properties), CONSUMING)
    for begin in range(0, len(body), piece):
        sent += frames.marshal(ContentBody(body[begin : begin + piece]), CONSUMING)
    return sent


DELIVER = commands.Basic.Deliver("tag", 7, False, "cy.main", "to.b.a")
RETURN = commands.Basic.Return(312, "NO_ROUTE", "cy.main", "to.z.a")


@settings(max_examples=60)
@given(body=st.binary(max_size=40), piece=st.integers(1, 40), cut=st.integers(1, 60), returned=st.booleans())
def test_a_message_comes_whole_in_whatever_pieces(body: bytes, piece: int, cut: int, returned: bool) -> None:
    async def run() -> None:
        connection, _ = connected()
        taken: list[tuple[str, str | None, bytes]] = []
        where = "returned" if returned else "took"
        setattr(connection, where, lambda key, properties, data: taken.append((key, properties.user_id, data)))
        sent = message(body, piece, RETURN if returned else DELIVER, Properties(user_id="a")) * 3
        for begin in range(0, len(sent), cut):
            connection.data_received(sent[begin : begin + cut])
        assert taken == [("to.z.a" if returned else "to.b.a", "a", body)] * 3

    asyncio.run(run())


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.builds(
                lambda kind, channel, payload: bytes([kind]) + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big")
                + payload + b"\xce",
                st.sampled_from([1, 2, 3, 8]), st.integers(0, 4), st.binary(max_size=30),
            ),
            st.builds(
                lambda method, rest: b"\x01\x00\x02" + (4 + len(rest)).to_bytes(4, "big") + method + rest + b"\xce",
                st.sampled_from([b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x32", b"\x00\x14\x00\x28", b"\x00\x0a\x00\x32"]),
                st.binary(max_size=20),
            ),
        ),
        max_size=5,
    )
)  # fmt: skip
def test_nothing_that_comes_does_more_than_end_the_connection(pieces: list[bytes]) -> None:
    async def run() -> None:
        connection, wire = connected()
        for piece in pieces:
            if not wire.is_over:
                connection.data_received(piece)
        assert not wire.is_over or connection.error is not None

    asyncio.run(run())


async def test_properties_that_cannot_be_read_are_none() -> None:
    connection, wire = connected()
    taken: list[Properties] = []
    connection.took = lambda key, properties, data: taken.append(properties)
    broken = frames.marshal(ContentHeader(0, 0, Properties(user_id="a", app_id="b")), CONSUMING).replace(b"\x01a", b"\xffa")
    connection.data_received(frames.marshal(DELIVER, CONSUMING) + broken)
    assert [properties.user_id for properties in taken] == [None]
    assert not wire.is_over


async def test_a_refused_channel_is_opened_again_and_its_callers_are_told() -> None:
    connection, wire = connected()
    first, second = [asyncio.create_task(connection.ask(ASKING, commands.Channel.Flow(True))) for _ in range(2)]
    other = asyncio.create_task(connection.ask(PUBLISHING, commands.Channel.Flow(True)))
    await asyncio.sleep(0)
    wire.written = b""
    connection.data_received(frames.marshal(commands.Channel.Close(404, "NOT_FOUND", 0, 0), ASKING))
    for task in (first, second):
        with pytest.raises(Refusal, match="NOT_FOUND"):
            await task
    expected = frames.marshal(commands.Channel.CloseOk(), ASKING) + frames.marshal(commands.Channel.Open(), ASKING)
    assert wire.written == expected
    third = asyncio.create_task(connection.ask(ASKING, commands.Channel.Flow(True)))
    await asyncio.sleep(0)
    connection.data_received(frames.marshal(commands.Channel.OpenOk(), ASKING))
    connection.data_received(frames.marshal(commands.Channel.FlowOk(True), ASKING))
    await third
    assert not other.done()
    wire.abort()
    with pytest.raises(Disconnected):
        await other


async def test_a_canceled_question_does_not_take_the_next_ones_answer() -> None:
    connection, wire = connected()
    first = asyncio.create_task(connection.ask(ASKING, commands.Channel.Flow(True)))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(connection.ask(ASKING, commands.Channel.Flow(True)))
    await asyncio.sleep(0)
    connection.data_received(frames.marshal(commands.Channel.FlowOk(True), ASKING))
    await asyncio.sleep(0)
    assert not second.done()
    connection.data_received(frames.marshal(commands.Channel.FlowOk(True), ASKING))
    await second
    wire.abort()
