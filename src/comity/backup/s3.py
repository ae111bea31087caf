"""A bucket of anything that speaks S3, through obstore (the Rust crate object_store). Credentials and address come from the
environment, as for every other program: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL."""

from __future__ import annotations

import os
from typing import Any, Literal
from urllib.parse import urlsplit

from comity.errors import AccessDenied, BadInput, BadSettings, ComityError, Conflict, NotFound, Unreachable


class S3Target:
    def __init__(self, where: str) -> None:
        try:
            import obstore
            from obstore import store
        except ImportError:
            raise BadSettings("backups to S3 need one more package: pip install 'comity[s3]'") from None
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
        self._store = store.S3Store(parts.netloc, **options)

    async def put(self, name: str, data: bytes) -> None:
        mode: Literal["overwrite", "create"] = "overwrite" if name.startswith("pieces/") else "create"
        try:
            await self._obstore.put_async(self._store, name, data, mode=mode)
        except Exception as error:
            raise self._meant(error, name) from error

    async def get(self, name: str) -> bytes:
        try:
            found = await self._obstore.get_async(self._store, name)
            return bytes(await found.bytes_async())
        except Exception as error:
            raise self._meant(error, name) from error

    async def list(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        try:
            async for rows in self._obstore.list(self._store, folder.rstrip("/")):
                found |= {row["path"]: row["size"] for row in rows}
        except Exception as error:
            raise self._meant(error, folder) from error
        return found

    def _meant(self, error: Exception, name: str) -> ComityError:
        """What an error of the library, or of what it talks to, means here."""
        known = self._obstore.exceptions
        place = f"{self._where}/{name}"
        if isinstance(error, FileNotFoundError | known.NotFoundError):
            return NotFound(f"there is no {place}", path=place)
        if isinstance(error, known.AlreadyExistsError | known.PreconditionError):
            return Conflict(f"{place} is there already", path=place)
        if isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError):
            return AccessDenied(f"these credentials may not use {place}", path=place)
        if isinstance(error, known.BaseError) and "NoSuchBucket" in str(error):
            return NotFound(f"there is no bucket for {self._where}", path=place)
        if isinstance(error, known.BaseError):
            return Unreachable(f"{place}: {str(error).splitlines()[0]}", path=place)
        return ComityError(f"unexpected {type(error).__name__} at {place}: {error}")
