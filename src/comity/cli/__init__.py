"""The command line. One file per noun; heavy modules are imported by the command that needs them."""

from __future__ import annotations


def main() -> None:
    """The ``comity`` program."""
    try:
        from comity.cli.app import app

        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
