"""System shared memory: images in memory that client and server on one machine share, so that they need not travel.

Once a region is registered with the server, its name is removed. The memory stays in the two processes that have mapped
it, and nothing is left behind however they end.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from mlcls_client.base.text import end_sentence
from mlcls_client.errors import InvalidRequestError, MlclsClientError, ProtocolError, ServerError
from mlcls_client.transport.connection import Endpoint
from mlcls_client.transport.error_mapping import is_shared_memory_in_use, mapped_errors

REGION_BYTES: Final = 32 * 2**20
_FOLDER: Final = Path("/dev/shm")
# A region that stays registered takes the server's memory until it ends, so a busy server gets time.
_UNREGISTER_TIMEOUT_S: Final = 10.0
_UNREGISTER_PAUSE_S: Final = 0.02
_LENGTH_BYTES: Final = 4  # before each element of a BYTES tensor, little-endian


class RegionCalls(Protocol):
    """What `ServerRegion` needs from a transport."""

    @property
    def endpoint(self) -> Endpoint:
        """Where the calls go."""
        ...

    @property
    def client(self) -> Any:
        """The client of tritonclient."""
        ...

    async def ask_within(
        self, left_s: float, call: Callable[..., Awaitable[Any]], *args: Any, admin: bool = False
    ) -> Any:
        """Await a call within a time limit."""
        ...


class _Region:
    """Mapped memory, allocated in blocks, first fit."""

    def __init__(self) -> None:
        self.name = f"mlcls-client-{os.getpid()}-{secrets.token_hex(8)}"
        self._path = _FOLDER / self.name
        self._used: list[tuple[int, int]] = []
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
        self._path.unlink(missing_ok=True)

    def write(self, parts: Sequence[bytes]) -> tuple[int, int] | None:
        """Copy a tensor into a free block and return (offset, size); None if it does not fit."""
        size = sum(map(len, parts))
        offset = 0
        for begin, end in self._used:
            if begin - offset >= size:
                break
            offset = end
        if offset + size > REGION_BYTES:
            return None
        self._used.append((offset, offset + size))
        self._used.sort()
        position = offset
        for part in parts:
            self._memory[position : position + len(part)] = part
            position += len(part)
        return offset, size

    def release(self, offset: int, size: int) -> None:
        self._used.remove((offset, offset + size))


@dataclass(frozen=True)
class SharedBlock:
    """The place of one request's images.

    Attributes:
        region: The region that holds them.
        offset: Offset in the region, in bytes.
        size_bytes: Size of the tensor.
    """

    region: _Region
    offset: int
    size_bytes: int

    @property
    def region_name(self) -> str:
        """The name under which the server knows the region."""
        return self.region.name

    def release(self) -> None:
        """Free the block."""
        self.region.release(self.offset, self.size_bytes)


class ServerRegion:
    """The region that one transport shares with its server; registered with the first request."""

    def __init__(self, transport: RegionCalls) -> None:
        """Prepare a region; nothing is allocated yet."""
        self._transport = transport
        self._region: _Region | None = None
        self._registering = asyncio.Lock()

    async def place(self, images: Sequence[bytes], left_s: float) -> SharedBlock | None:
        """Copy images into shared memory; return None if they do not fit now and have to travel.

        Raises:
            InvalidRequestError: This machine has no room for the region.
            ServerError: The server rejects it.
            MlclsClientError: The connection failed in another way.
        """
        async with self._registering:
            if self._region is None:
                self._region = await self._register(left_s)
        parts = [part for image in images for part in (len(image).to_bytes(_LENGTH_BYTES, "little"), image)]
        region = self._region
        written = region.write(parts)
        return None if written is None else SharedBlock(region, *written)

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

    async def _unregister(self, region: _Region) -> None:
        """Unregister a region; repeat as long as the server refuses because it still works on canceled requests."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + _UNREGISTER_TIMEOUT_S
        while (left_s := deadline - clock()) > 0:
            try:
                with mapped_errors(self._transport.endpoint):
                    await self._transport.ask_within(
                        left_s, self._transport.client.unregister_system_shared_memory, region.name, admin=True
                    )
                return
            except ServerError as error:
                if not is_shared_memory_in_use(error.server_text or ""):
                    raise
            await asyncio.sleep(_UNREGISTER_PAUSE_S)

    async def _register(self, left_s: float) -> _Region:
        region = _Region()
        try:
            with mapped_errors(self._transport.endpoint):
                await self._transport.ask_within(
                    left_s,
                    self._transport.client.register_system_shared_memory,
                    region.name,
                    f"/{region.name}",
                    REGION_BYTES,
                    admin=True,
                )
        except (InvalidRequestError, ServerError, ProtocolError) as error:
            raise ServerError(
                f"The {self._transport.endpoint.server} accepts no shared memory from this client: "
                f"{end_sentence(error.server_text or str(error))} Client and server must be on one machine and see the "
                f"same {_FOLDER}, and the server must allow it (`mlcls serve`: pass its MLCLS_ADMIN_KEY as admin_key). "
                "Otherwise, leave shared_memory out.",
                server_text=error.server_text,
            ) from error
        finally:
            region.unlink()
        return region
