"""An exception of a user's function as a failure that the network understands."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from comity.errors import BadInput, ComityError, InvalidOutput, Unanswered
from comity.model.task import TaskFailure

MESSAGE_LIMIT = 4096
_HOPELESS = (BadInput, InvalidOutput, Unanswered)
"""The same again would end the same."""
_OURS = str(Path(__file__).parents[1])

NoRetry = tuple[type[BaseException] | str, ...]
"""Exceptions that another attempt would not mend: classes or names of classes, and what is derived from them."""


class Failure(Exception):
    """A failure that is known already."""

    def __init__(self, failure: TaskFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def failure_of(error: BaseException, no_retry: NoRetry = ()) -> TaskFailure:
    """``code`` is the stable code of an error of ours, else the exception's class name. Another attempt is worth while unless
    the error is the input's or the function's own, or one of ``no_retry``."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, Failure):
        return error.failure
    code = error.code if isinstance(error, ComityError) else type(error).__name__
    message = said_by(error.message if isinstance(error, ComityError) else error)
    types = tuple(kind for kind in no_retry if isinstance(kind, type))
    is_final = isinstance(error, (*_HOPELESS, *types)) or any(kind.__name__ in no_retry for kind in type(error).__mro__)
    return TaskFailure(said_by(code), message, not is_final)


def said_by(value: object) -> str:
    """``value`` as text that can be sent and kept, whatever it is: not too long, and without half characters (of file names that
    are no UTF-8, say)."""
    try:
        text = str(value)
    except Exception as error:
        text = f"a {type(value).__name__} that cannot say what it is ({type(error).__name__})"
    return text[:MESSAGE_LIMIT].encode("utf-8", "backslashreplace").decode()[:MESSAGE_LIMIT]


def place(error: BaseException) -> str:
    """The innermost line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""


def traced(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None] | None:
    """For a log line: the user's own frames, for ours say nothing to whoever wrote the function. None for an error of ours."""
    if isinstance(error, ComityError | Failure):
        return None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return type(error), error, trace
