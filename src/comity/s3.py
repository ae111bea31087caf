"""A bucket of anything that speaks S3, through obstore (the Rust crate object_store). Credentials and address come from the
environment, as for every other program: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from comity.errors import AccessDenied, BadInput, BadSettings, ComityError, Conflict, Corrupt, NotFound, Unreachable

PART = 5 * 1024 * 1024
"""Bytes of a part of a large upload: the least that S3 allows."""


class Found(NamedTuple):
    data: bytes
    size: int
    """Bytes of the whole object, of which ``data`` may be the end."""
    tag: str
    """Of this version of it."""


class Row(NamedTuple):
    name: str
    size: int
    modified: datetime


class Bucket:
    """What lies at ``where``, ``s3://BUCKET/PREFIX``. Raises BadInput (no bucket is named), BadSettings (obstore is missing).
    ``is_waited_for``: somebody waits for each answer, so an error is told within seconds; else it is tried for minutes.

    What is done with it raises NotFound (the object, or the bucket), AccessDenied, Conflict, Unreachable."""

    def __init__(self, where: str, *, is_waited_for: bool = False) -> None:
        try:
            import obstore
            from obstore import store
        except ImportError:
            raise BadSettings("S3 needs one more package: pip install 'comity[s3]'") from None
        parts = urlsplit(where)
        if not parts.netloc:
            raise BadInput(f"{where} names no bucket: s3://BUCKET/PREFIX", value=where)
        self._obstore = obstore
        self._where = where.rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        options: dict[str, Any] = {"prefix": parts.path.strip("/")} if parts.path.strip("/") else {}
        if endpoint:
            options["endpoint"] = endpoint
        if endpoint.startswith("http://"):  # a server on this machine or network; TLS elsewhere
            options["client_options"] = {"allow_http": True}
        if is_waited_for:
            options["retry_config"] = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
        self._store = store.S3Store(parts.netloc, **options)

    async def put(self, name: str, data: bytes, *, instead_of: str | None = "") -> str:
        """Write whole, and give its tag: where there is nothing yet, or ``instead_of`` the version with that tag, or (None) of
        anything. Raises Conflict."""
        mode: Any = "overwrite" if instead_of is None else {"e_tag": instead_of} if instead_of else "create"
        try:
            done = await self._obstore.put_async(self._store, name, data, mode=mode)
        except Exception as error:
            raise self._meant(error, name) from error
        return str(done["e_tag"] or "")

    async def upload(self, name: str, chunks: AsyncIterator[bytes]) -> None:
        """Write in parts, few of them in memory; nothing is there before the end of ``chunks``, or if they break off."""
        writer = self._obstore.open_writer_async(self._store, name, buffer_size=PART, max_concurrency=2)
        async for chunk in chunks:
            try:
                await writer.write(chunk)
            except Exception as error:
                raise self._meant(error, name) from error
        try:
            await writer.close()
        except Exception as error:
            raise self._meant(error, name) from error

    async def get(self, name: str, *, last: int | None = None) -> Found:
        """The whole object, or its ``last`` bytes."""
        options: Any = {"range": {"suffix": last}} if last is not None else None
        try:
            found = await self._obstore.get_async(self._store, name, options=options)
            return Found(bytes(await found.bytes_async()), found.meta["size"], found.meta["e_tag"] or "")
        except Exception as error:
            raise self._meant(error, name) from error

    async def part(self, name: str, start: int, end: int) -> bytes:
        """Those bytes, or fewer if it ends sooner. Raises Corrupt if it has none of them."""
        try:
            return bytes(await self._obstore.get_range_async(self._store, name, start=start, end=end))
        except Exception as error:
            raise self._meant(error, name) from error

    async def delete(self, name: str) -> None:
        """Remove; fine if it is gone already."""
        try:
            await self._obstore.delete_async(self._store, name)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._meant(error, name) from error
        except Exception as error:
            raise self._meant(error, name) from error

    async def list(self, folder: str, *, begins: str = "") -> AsyncIterator[Row]:
        """What is in ``folder``, at any depth. ``begins``: only names that begin so, and none after them is asked for."""
        try:
            async for rows in self._obstore.list(self._store, folder.rstrip("/"), offset=begins[:-1] or None):
                for row in rows:
                    if not row["path"].startswith(begins):
                        if row["path"] > begins:  # S3 lists in order
                            return
                        continue
                    yield Row(row["path"], row["size"], row["last_modified"])
        except Exception as error:
            raise self._meant(error, folder) from error

    def _meant(self, error: Exception, name: str) -> ComityError:
        """What an error of the library, or of what it talks to, means here."""
        known = self._obstore.exceptions
        place = f"{self._where}/{name}"
        is_refused = isinstance(error, OSError) and any(code in str(error) for code in ("code: 401", "code: 403"))  # a writer's
        if "NoSuchBucket" in str(error):
            return NotFound(f"there is no bucket for {self._where}", path=place)
        if isinstance(error, FileNotFoundError | known.NotFoundError):
            return NotFound(f"there is no {place}", path=place)
        if isinstance(error, known.AlreadyExistsError | known.PreconditionError):
            return Conflict(f"{place} is there already", path=place)
        if is_refused or isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError):
            return AccessDenied(f"these credentials may not use {place}", path=place)
        if isinstance(error, known.BaseError) and ("416 Range" in str(error) or "NotPartial" in str(error)):
            return Corrupt(f"{place} is shorter than it should be", path=place)
        if isinstance(error, known.BaseError | OSError):
            return Unreachable(f"{place}: {str(error).splitlines()[0]}", path=place)
        return ComityError(f"unexpected {type(error).__name__} at {place}: {error}")
