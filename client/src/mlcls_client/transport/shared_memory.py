"""System shared memory: images in memory that client and server on one machine share, so that they need not travel.

Once a region is registered with the server, its name is removed. The memory stays in the two processes that have mapped
it, and nothing is left behind however they end.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import mmap
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from mlcls_client.base.text import end_sentence
from mlcls_client.errors import InvalidRequestError, MlclsClientError, ProtocolError, ServerError
from mlcls_client.transport.connection import Connection

REGION_BYTES: Final = 32 * 2**20
_FOLDER: Final = Path("/dev/shm")
# A region that stays registered takes the server's memory until it ends, so a busy server gets time.
_UNREGISTER_TIMEOUT_S: Final = 10.0
_UNREGISTER_PAUSE_S: Final = 0.02
_LENGTH_BYTES: Final = 4  # before each element of a BYTES tensor, little-endian


class SharedBlock(NamedTuple):
    """The place of one request's images in shared memory: its region, and offset and size in bytes."""

    region: Region
    offset: int
    size_bytes: int


class Region:
    """Mapped memory, allocated in blocks, first fit."""

    def __init__(self) -> None:
        """Allocate the memory, or raise InvalidRequestError if this machine has no room for it."""
        self.name = f"mlcls-client-{os.getpid()}-{secrets.token_hex(8)}"
        self._path = _FOLDER / self.name
        self._used: list[SharedBlock] = []
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                # Not ftruncate: if the file system then lacks the memory, a write would kill the process.
                os.posix_fallocate(descriptor, 0, REGION_BYTES)
                self._memory = mmap.mmap(descriptor, REGION_BYTES)
            except BaseException:
                self.unlink()
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise InvalidRequestError(
                f"shared_memory needs {REGION_BYTES // 2**20} MiB of {_FOLDER}: {error.strerror or error}. Make room "
                "there (Docker: --shm-size), or leave shared_memory out."
            ) from error

    def unlink(self) -> None:
        """Remove the name; the memory stays where it is mapped."""
        self._path.unlink(missing_ok=True)

    def write(self, images: Sequence[bytes]) -> SharedBlock | None:
        """Copy images as a BYTES tensor into a free block; return None if it does not fit."""
        tensor = b"".join(part for image in images for part in (len(image).to_bytes(_LENGTH_BYTES, "little"), image))
        offset = 0
        for block in self._used:
            if block.offset - offset >= len(tensor):
                break
            offset = block.offset + block.size_bytes
        if offset + len(tensor) > REGION_BYTES:
            return None
        block = SharedBlock(self, offset, len(tensor))
        bisect.insort(self._used, block, key=lambda used: used.offset)
        self._memory[offset : offset + len(tensor)] = tensor
        return block

    def release(self, block: SharedBlock) -> None:
        """Free a block."""
        self._used.remove(block)


class ServerRegion:
    """The region that one transport shares with its server; registered through `ask` with the first request."""

    def __init__(self, connection: Connection, ask: Callable[..., Awaitable[Any]]) -> None:
        self._connection = connection
        self._ask = ask
        self._region: Region | None = None
        self._registering = asyncio.Lock()

    async def place(self, images: Sequence[bytes], left_s: float) -> SharedBlock | None:
        """Copy images into shared memory; return None if they do not fit now and have to travel."""
        async with self._registering:
            if self._region is None:
                self._region = await self._register(left_s)
        return self._region.write(images)

    def forget(self, block: SharedBlock) -> None:
        """Drop a region that the server has lost; the next request makes a new one."""
        if self._region is block.region:
            self._region = None

    async def close(self) -> None:
        """Let the server unmap the region, if it still can."""
        region, self._region = self._region, None
        if region is not None:
            with contextlib.suppress(MlclsClientError):
                await self._unregister(region)

    async def _unregister(self, region: Region) -> None:
        """Unregister a region; repeat as long as the server refuses because it still works on canceled requests."""
        deadline = time.monotonic() + _UNREGISTER_TIMEOUT_S
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                await self._ask(left_s, "unregister_system_shared_memory", region.name, admin=True)
                return
            except ServerError as error:
                if "cannot unregister" not in (error.server_text or "").lower():
                    raise
            await asyncio.sleep(_UNREGISTER_PAUSE_S)

    async def _register(self, left_s: float) -> Region:
        region = Region()
        try:
            names = (region.name, f"/{region.name}")
            await self._ask(left_s, "register_system_shared_memory", *names, REGION_BYTES, admin=True)
        except (InvalidRequestError, ServerError, ProtocolError) as error:
            raise ServerError(
                f"The {self._connection.server} accepts no shared memory from this client: "
                f"{end_sentence(error.server_text or str(error))} Client and server must be on one machine and see the "
                f"same {_FOLDER}, and the server must allow it (`mlcls serve`: pass its MLCLS_ADMIN_KEY as admin_key). "
                "Otherwise, leave shared_memory out.",
                server_text=error.server_text,
            ) from error
        finally:
            region.unlink()
        return region
