"""``comity backup``: copies of a network, made while it runs, and networks made of them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.command import Cli, command, commands
from comity.cli.looks import bold, dim, paint

if TYPE_CHECKING:
    from comity.backup.manifest import Manifest

app = commands("Copies of a network, made while it runs: create, list, verify, restore.")

WHERE = "A folder, or s3://BUCKET/PREFIX (pip install 'comity[s3]')."
From = Annotated[str, typer.Option("--from", metavar="TARGET", help=WHERE)]
Name = Annotated[str, typer.Argument(metavar="[NAME]", help="Which one, or how its name begins; else the newest.")]


@command(app)
async def create(
    cli: Cli,
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help=WHERE)],
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="With the network's keys: guard the target as you guard them.")
    ] = False,
) -> None:
    """Copy the network as it is at one moment; what an earlier backup there has already is not written again.

    It needs the network's keys or credentials for it. Exits 1 if something in the store is damaged and had to be left out.
    """
    import logging

    from comity.backup.targets import open_target
    from comity.cli.backing_up import back_up
    from comity.cli.logs import configure
    from comity.errors import Corrupt

    configure(logging.DEBUG if cli.output.debug else logging.WARNING, as_json=cli.output.as_json)
    target = open_target(to, create=True)
    made, took_s = await back_up(cli.loaded(), target, with_keys=with_keys)
    found = made.manifest
    facts = {
        **_row(found), "wrote_bytes": made.wrote_bytes, "wrote_pieces": made.wrote, "reused_pieces": made.reused,
        "tries": made.tries, "first": made.is_first, "took_s": round(took_s, 3), "cpu_s": round(time.process_time(), 3),
    }  # fmt: skip
    if cli.output.as_json:
        cli.output.show(facts)
    else:
        cli.output.say(f"{paint('green', '●')} backup {bold(found.name)} {dim(f'({took_s:.1f} s)')}")
        kept = "" if made.is_first else f", the rest ({_size(found.size - made.wrote_bytes)}) was there already"
        cli.output.facts([*_facts(found), ("written", f"{_size(made.wrote_bytes)}{kept}")])
    if found.damaged:
        raise Corrupt(
            f"backup {found.name} was made, but {len(found.damaged)} values in the store are damaged and were left out, such as "
            f"{found.damaged[0]}", places=found.damaged,
        )  # fmt: skip


@command(app, "list", connects=False)
async def list_(cli: Cli, source: From) -> None:
    """The backups that are there, oldest first."""
    from comity.backup import manifest
    from comity.backup.targets import open_target
    from comity.errors import Corrupt, ForeignData

    target = open_target(source)
    rows: list[dict[str, Any]] = []
    for name in await manifest.names(target):
        try:
            rows.append(_row(await manifest.read(target, name)))
        except (Corrupt, ForeignData) as error:
            rows.append({"name": name, "network_id": manifest.network_of(name), "fault": error.message})
    if cli.output.as_json:
        cli.output.show(rows)
        return
    cells = [
        (row["name"], row.get("network"), row.get("at", "")[:19], _size(row["bytes"]) if "bytes" in row else "",
         row.get("open"), row.get("finished"), row.get("fault"))
        for row in rows
    ]  # fmt: skip
    cli.output.table(("BACKUP", "NETWORK", "AT", "SIZE", "OPEN", "FINISHED", "FAULT"), cells, "no backups are here yet")


@command(app, connects=False)
async def verify(cli: Cli, source: From, name: Name = "") -> None:
    """Read every byte of a backup and check it. Exits 1, and names the places, if anything is missing, cut short or altered."""
    from comity.backup import manifest
    from comity.backup.check import check
    from comity.backup.targets import open_target

    target = open_target(source)
    found = await manifest.find(target, name)
    checked = await check(target, found)
    if cli.output.as_json:
        cli.output.show({**_row(found), "checked_pieces": checked.pieces, "checked_bytes": checked.bytes})
        return
    read = f"{checked.pieces:,} pieces, {_size(checked.bytes)}, are as written"
    cli.output.say(f"{paint('green', '✓')} backup {bold(found.name)}: {read}")
    cli.output.facts(_facts(found))


@command(app, connects=False)
async def restore(
    cli: Cli,
    source: From,
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help="The new network's data: not there yet, or empty.")],
    name: Name = "",
    network: Annotated[str | None, typer.Option("--network", metavar="NAME", help="What it is called; else as it was.")] = None,
    generation: Annotated[
        int | None, typer.Option("--generation", metavar="N", min=1, help="Of its epochs, if the target cannot be written to.")
    ] = None,
    nats_server: Annotated[Path | None, typer.Option("--nats-server", metavar="FILE", help="The server program.")] = None,
    log: Annotated[str | None, typer.Option("--log", metavar="ADDRESS", help="Where its log will be, as with comity up.")] = None,
    registry: Annotated[str | None, typer.Option("--registry", metavar="ADDRESS", help="And its registry.")] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="ADDRESS", help="And its store.")] = None,
) -> None:
    """Make a new network of a backup; comity up starts it.

    It has an id of its own, and its epochs are above those of the one it comes from, so the two are never taken for each other.
    What ran then waits to be given to agents again.
    """
    from comity.backends import check_places
    from comity.backup import manifest
    from comity.backup.targets import open_target
    from comity.cli.restoring import restore_into

    places = {name: at for name, at in (("log", log), ("registry", registry), ("store", store)) if at is not None}
    settings = cli.settings(data_dir=data, network=network, nats_server=nats_server, doors=places or None)
    check_places(settings.doors)
    target = open_target(source)
    found = await manifest.find(target, name)
    token = network or found.network
    made = await restore_into(settings, target, found, network=token, generation=generation)
    if cli.output.as_json:
        cli.output.show({**_row(found), "data": str(data), "new_network_id": made.network_id, "new_generation": made.generation,
                         "took_s": round(made.took_s, 3)})  # fmt: skip
        return
    cli.output.say(f"{paint('green', '●')} network {bold(token)} was made of backup {found.name} {dim(f'({made.took_s:.1f} s)')}")
    cli.output.facts([*_facts(found), ("its id", made.network_id), ("generation", made.generation), ("data", data)])
    cli.output.say(f"\nNext: {bold(f'comity up --data {data}')}")


def _row(found: Manifest) -> dict[str, Any]:
    done = sum(found.tasks.get(state, 0) for state in ("completed", "failed", "canceled", "rejected", "archived"))
    return {
        "name": found.name,
        "network": found.network,
        "network_id": found.network_id,
        "at": datetime.fromtimestamp(found.at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "index": found.index,
        "generation": found.generation,
        "bytes": found.size,
        "open": sum(found.tasks.values()) - done,
        "finished": done,
        "keys": found.keys is not None,
        "missing": found.missing,
        "damaged": found.damaged,
        "version": found.version,
    }


def _facts(found: Manifest) -> list[tuple[str, Any]]:
    row = _row(found)
    return [
        ("of", f"network {found.network} ({found.network_id}) after log entry {found.index:,}, {row['at'][:19]}Z"),
        ("tasks", f"{row['open']:,} open, {row['finished']:,} finished"),
        ("size", _size(found.size)),
        ("keys", "with the network's keys" if found.keys is not None else None),
        ("expired", f"{len(found.missing)} payloads were no longer there" if found.missing else None),
        ("damaged", paint("red", f"{len(found.damaged)} values left out: {found.damaged[0]}...") if found.damaged else None),
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1_000_000 else f"{count / 1e3:,.1f} KB"
