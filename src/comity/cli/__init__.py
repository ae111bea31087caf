"""The command line. One file per noun; heavy modules are imported by the command that needs them."""

from __future__ import annotations


def main() -> None:
    """The ``comity`` program."""
    import gc

    gc.disable()  # until a command has started: looking for garbage among imports takes a tenth of a short command's time
    try:
        from comity.cli.app import app

        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
