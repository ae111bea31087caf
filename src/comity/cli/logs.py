"""Log lines: on stderr, few unless asked for. Programs that stay (up, run) tell of warnings; commands only with --debug."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from comity.cli.looks import is_coloured

if TYPE_CHECKING:
    from structlog.typing import Processor


def configure(level: int, *, as_json: bool = False) -> None:
    """From now on, log lines of ``level`` and above go to stderr, libraries' too: as text, or one JSON object a line."""
    import structlog
    from structlog import processors

    stamp = processors.TimeStamper("iso") if as_json else processors.TimeStamper("%H:%M:%S", utc=False)
    chain: list[Processor] = [processors.add_log_level, stamp, *([processors.format_exc_info] if as_json else [])]
    console = structlog.dev.ConsoleRenderer(
        pad_event_to=0, colors=is_coloured(sys.stderr), exception_formatter=structlog.dev.plain_traceback
    )
    render = processors.JSONRenderer() if as_json else console
    lines = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter
    lines.setFormatter(formatter(foreign_pre_chain=chain, processors=[formatter.remove_processors_meta, render]))
    logging.basicConfig(level=level, handlers=[lines], force=True)
    structlog.configure(
        processors=[*chain, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
