"""Backups in a bucket of anything that speaks S3."""

from __future__ import annotations

from comity.s3 import Bucket


class S3Target:
    def __init__(self, where: str) -> None:
        self._bucket = Bucket(where)

    async def put(self, name: str, data: bytes) -> None:
        await self._bucket.put(name, data, instead_of=None if name.startswith("pieces/") else "")

    async def get(self, name: str) -> bytes:
        return (await self._bucket.get(name)).data

    async def list(self, folder: str) -> dict[str, int]:
        return {row.name: row.size async for row in self._bucket.list(folder)}
