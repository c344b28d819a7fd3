"""System shared memory: images that client and server on one machine both see, so that they need not travel.

A region is made, registered with the server and then loses its name at once: the memory lives on in the two processes
that have mapped it, and nothing is left behind however they end.
"""

import asyncio
import contextlib
import mmap
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from mlcls_client.errors import InvalidRequestError, MlclsClientError, ProtocolError, ServerError
from mlcls_client.transport.error_mapping import Endpoint, is_shared_memory_in_use, mapped_errors

REGION_BYTES: Final = 32 * 2**20
_FOLDER: Final = Path("/dev/shm")
# A region that stays registered costs the server its memory until it ends; so a busy server gets time.
_UNREGISTER_TIMEOUT_S: Final = 10.0
_UNREGISTER_PAUSE_S: Final = 0.02
_LENGTH_BYTES: Final = 4  # before each element of a BYTES tensor, little-endian


class RegionCalls(Protocol):
    """What `ServerRegion` needs of a transport."""

    @property
    def endpoint(self) -> Endpoint:
        """Whom the calls go to."""
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
    """Mapped memory, given out in blocks, first fit."""

    def __init__(self) -> None:
        self.name = f"mlcls-client-{os.getpid()}-{secrets.token_hex(8)}"
        self._path = _FOLDER / self.name
        self._used: list[tuple[int, int]] = []
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                # Not ftruncate: writing to memory that the file system then lacks would kill the process.
                os.posix_fallocate(descriptor, 0, REGION_BYTES)
                self._memory = mmap.mmap(descriptor, REGION_BYTES)
            except BaseException:
                self.unlink()
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise InvalidRequestError(
                f"shared_memory needs {REGION_BYTES // 2**20} MiB of {_FOLDER}: {error.strerror or error}; make room "
                "there (Docker: --shm-size), or leave shared_memory out"
            ) from error

    def unlink(self) -> None:
        self._path.unlink(missing_ok=True)

    def write(self, parts: Sequence[bytes]) -> tuple[int, int] | None:
        """Copy a tensor into a free block and return (offset, size); None where it does not fit."""
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
    """Where one request's images are.

    Attributes:
        region: That holds them.
        offset: In the region, bytes.
        size_bytes: Of the tensor.
    """

    region: _Region
    offset: int
    size_bytes: int

    @property
    def region_name(self) -> str:
        """Under which the server knows the region."""
        return self.region.name

    def release(self) -> None:
        """Give the block back."""
        self.region.release(self.offset, self.size_bytes)


class ServerRegion:
    """The region that one transport shares with its server; registered with the first request."""

    def __init__(self, transport: RegionCalls) -> None:
        """Prepare; nothing is made yet."""
        self._transport = transport
        self._region: _Region | None = None
        self._registering = asyncio.Lock()

    async def place(self, images: Sequence[bytes], left_s: float) -> SharedBlock | None:
        """Copy images into shared memory; None where they do not fit now, so that they have to travel.

        Raises:
            InvalidRequestError: This machine has no room for the region.
            ServerError: The server refuses it.
            MlclsClientError: Another failure of the connection.
        """
        async with self._registering:
            if self._region is None:
                self._region = await self._register(left_s)
        parts = [part for image in images for part in (len(image).to_bytes(_LENGTH_BYTES, "little"), image)]
        region = self._region
        written = region.write(parts)
        return None if written is None else SharedBlock(region, *written)

    def forget(self, block: SharedBlock) -> None:
        """Leave a region that the server has lost; the next request makes a new one."""
        if self._region is block.region:
            self._region = None

    async def close(self) -> None:
        """Let the server unmap the region, if it still can."""
        region, self._region = self._region, None
        if region is not None:
            with contextlib.suppress(MlclsClientError):
                await self._unregister(region)

    async def _unregister(self, region: _Region) -> None:
        """Ask again while the server refuses because it still works on requests that were canceled."""
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
                f"{self._transport.endpoint.server} takes no shared memory from this client: "
                f"{error.server_text or error}. Client and server have to be on one machine and see the same "
                f"{_FOLDER}, and the server has to allow it (`mlcls serve`: with its MLCLS_ADMIN_KEY as admin_key); "
                "otherwise leave shared_memory out.",
                server_text=error.server_text,
            ) from error
        finally:
            region.unlink()
        return region
