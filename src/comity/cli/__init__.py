"""The command line. One file per noun; heavy modules are imported by the command that needs them."""

from __future__ import annotations


def main() -> None:
    """The ``comity`` program."""
    import gc
    import io
    import sys

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the locale cannot show must not end a command
    gc.disable()  # until a command has started: looking for garbage among imports takes a tenth of a short command's time
    try:
        from comity.cli.app import app

        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
