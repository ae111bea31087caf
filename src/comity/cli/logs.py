"""Log lines: on stderr, few unless asked for. Programs that stay (up, run) tell of warnings; commands only with --debug."""

from __future__ import annotations

import logging
import sys

from comity.cli.looks import is_coloured


def configure(level: int, *, as_json: bool = False) -> None:
    """From now on, log lines of ``level`` and above go to stderr: as text, or one JSON object a line."""
    import structlog

    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper("iso") if as_json else structlog.processors.TimeStamper("%H:%M:%S", utc=False),
            structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(is_coloured(sys.stderr)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
