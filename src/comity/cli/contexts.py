"""``comity context``: named connections."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.command import Cli, command, commands
from comity.cli.looks import bold, dim, paint

if TYPE_CHECKING:
    from comity.contexts import Context, Contexts

app = commands("Named connections: which servers, which network, whose credentials.")


class Role(enum.StrEnum):
    NODE = "node"
    CLIENT = "client"


Name = Annotated[str, typer.Argument(metavar="NAME", help="The context's name.")]


def _saved() -> Contexts:
    from comity.contexts import Contexts, config_home

    return Contexts(config_home(os.environ))


def _row(name: str, context: Context, current: str) -> dict[str, Any]:
    return {
        "name": name,
        "current": name == current,
        "urls": list(context.urls),
        "network": context.network,
        "credentials": context.credentials or None,
        "authority": context.authority or None,
        "ca": context.ca or None,
    }


@command(app, "list", connects=False)
async def list_(cli: Cli) -> None:
    """All saved connections, and this machine's own network."""
    from comity.contexts import LOCAL, Context

    saved = _saved()
    rows = [_row(name, saved.get(name), saved.current) for name in saved.names()]
    local = Context.read_local(cli.settings().data_dir)
    if local is not None and LOCAL not in saved.names():
        rows.append(_row(LOCAL, local, saved.current or LOCAL))
    if cli.output.as_json:
        cli.output.show(rows)
        return
    here = paint("green", "●")
    cells = [(here if r["current"] else " ", r["name"], " ".join(r["urls"]), r["network"], r["credentials"]) for r in rows]
    cli.output.table(("", "CONTEXT", "ADDRESS", "NETWORK", "CREDENTIALS"), cells, "no contexts; start a network with: comity up")


@command(app)
async def show(
    cli: Cli, name: Annotated[str, typer.Argument(metavar="[NAME]", help="Which; else the one that commands use now.")] = ""
) -> None:
    """One context, or the connection that commands would use now."""
    from comity.contexts import resolve
    from comity.model.ids import shown_urls

    loaded = cli.loaded(context=name or None)
    context = resolve(loaded)
    if cli.output.as_json:
        cli.output.show(_row(name or loaded.settings.context or _saved().current or "", context, _saved().current))
        return
    cli.output.facts(
        [
            ("address", shown_urls(context.urls)),
            ("network", context.network),
            ("credentials", context.credentials or dim("none")),
            ("ca", context.ca),
            ("data", context.authority),
            *(("from", f"{field}: {source}") for field, source in loaded.sources.items() if source != "default"),
        ],
        indent="",
    )


@command(app, connects=False)
async def use(cli: Cli, name: Name) -> None:
    """Make a context the one that commands use. "local" is the network of this machine's data directory."""
    from comity.contexts import LOCAL

    saved = _saved()
    saved.use("" if name == LOCAL and LOCAL not in saved.names() else name)
    _done(cli, f"commands now use {bold(name)}", {"current": name})


@command(app, connects=False)
async def add(
    cli: Cli,
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="The servers' address, or several with commas.")],
    network: Annotated[str, typer.Option("--network", metavar="NAME", help="The network's name.")] = "main",
    credentials: Annotated[Path | None, typer.Option("--credentials", metavar="FILE", help="Whose credentials.")] = None,
    ca: Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="Whose certificates the servers have.")] = None,
) -> None:
    """Save a connection, or replace the one of that name. The first one becomes the current one."""
    from comity.contexts import Context, check_url
    from comity.credentials import Credentials
    from comity.errors import BadInput
    from comity.model.ids import check_token

    if credentials is not None:
        Credentials.load(credentials)
    urls = tuple(check_url(part.strip()) for part in url.split(",") if part.strip())
    if not urls:
        raise BadInput("a context needs the address of a server")
    saved = _saved()
    path = str(credentials.expanduser().absolute()) if credentials is not None else ""
    trusted = str(ca.expanduser().absolute()) if ca is not None else ""
    saved.put(name, Context(urls=urls, network=check_token(network, "network"), credentials=path, ca=trusted))
    used = "; commands now use it" if saved.current == name else ""
    _done(cli, f"saved {bold(name)}{used}", _row(name, saved.get(name), saved.current))


@command(app)
async def invite(
    cli: Cli,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the process there is called: agents are NAME/agent.")],
    role: Annotated[Role, typer.Option("--role", help="A node hosts agents; a client submits, looks, asks. To be given.")],
    ttl: Annotated[str | None, typer.Option("--ttl", metavar="TIME", help="How long it is good (30d), else always.")] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="The file to write, else NAME.invite.")] = None,
) -> None:
    """Write a file with which a node or a client on another machine comes into the network, with credentials of its own.

    Whoever has the file is that process: give it to nobody but that machine, and delete it once it is imported.
    """
    from urllib.parse import urlsplit

    from comity.cli.inviting import invite as make
    from comity.cli.inviting import write
    from comity.cli.terms import length
    from comity.cluster.config import is_loopback
    from comity.contexts import resolve

    invitation = make(resolve(cli.loaded()), name, role.value, length(ttl) if ttl is not None else None)
    path = to or Path(f"{name}.invite")
    write(invitation, path)
    if all(is_loopback(urlsplit(url).hostname or "") for url in invitation.urls):
        cli.output.note("this network can be reached from this machine only: begin it with comity up --listen ADDRESS")
    row = {"file": str(path), "process": name, "role": role.value, "network": invitation.network, "urls": list(invitation.urls)}
    _done(cli, f"wrote {bold(str(path))}; on the other machine: comity context import {path.name}", row)


@command(app, "import", connects=False)
async def import_(
    cli: Cli,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What comity context invite wrote.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What to call the context, else as it was invited.")] = "",
) -> None:
    """Save the connection that comity context invite wrote, or replace the one of that name. Its credentials are kept."""
    import time

    from comity.cli.inviting import read, settle
    from comity.contexts import config_home
    from comity.model.ids import shown_urls

    invitation, known = read(file, time.time())
    saved, name = _saved(), name or known.process
    saved.put(name, settle(invitation, known, config_home(os.environ) / "credentials", name))
    row = {**_row(name, saved.get(name), saved.current), "process": known.process, "role": known.role}
    used = "; commands now use it" if saved.current == name else f"; use it with --context {name}"
    _done(cli, f"saved {bold(name)}, a {known.role} of {known.network} at {shown_urls(invitation.urls)}{used}", row)


@command(app, connects=False)
async def remove(cli: Cli, name: Name) -> None:
    """Forget a connection. Its credentials file stays."""
    _saved().remove(name)
    _done(cli, f"removed {bold(name)}", {"removed": name})


def _done(cli: Cli, said: str, value: dict[str, Any]) -> None:
    if cli.output.as_json:
        cli.output.show(value)
    else:
        cli.output.say(said)
