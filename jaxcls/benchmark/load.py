"""Clients of a server: so many at once, each asks again when it is answered."""

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np


class Reply(NamedTuple):
    """What a client was answered."""

    number: int  # of the request
    status: int  # of HTTP; 0: the connection broke or could not be made
    seconds: float
    body: bytes
    headers: bytes


def request(body: bytes, path: str = "/predict", kind: str = "application/octet-stream") -> bytes:
    """Returns what is sent to POST a body."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class _Client(asyncio.Protocol):
    def __init__(self, requests: Iterator[tuple[int, bytes]], replies: list[Reply], end: float):
        self._requests, self._replies, self._end = requests, replies, end
        self.done = asyncio.get_running_loop().create_future()
        self._number: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._number, self._begun, self._buffer = None, time.perf_counter(), bytearray()
        following = next(self._requests, None) if self._begun < self._end else None
        if following is None:
            self._transport.close()
            return
        self._number, data = following
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        headers = bytes(self._buffer[:head]).lower()
        _, _, rest = headers.partition(b"content-length:")
        length = int(rest.partition(b"\r\n")[0] or 0)
        if len(self._buffer) < head + 4 + length:
            return
        self._told(int(headers[9:12]), bytes(self._buffer[head + 4 :]), headers)
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if self._number is not None:
            self._told(0, b"", b"")
        if not self.done.done():
            self.done.set_result(None)

    def _told(self, status: int, body: bytes, headers: bytes) -> None:
        took = time.perf_counter() - self._begun
        self._replies.append(Reply(self._number, status, took, body, headers))
        self._number = None


async def ask(
    address: tuple[str, int],
    requests: Iterable[bytes],
    clients: int,
    seconds: float = float("inf"),
) -> list[Reply]:
    """Returns the replies to requests, in the order of their arrival.

    Args:
      address: host and port.
      requests: what is sent, one after the other, by whoever is free.
      clients: connections at once.
      seconds: after which no request is begun.
    """
    numbered, replies = enumerate(requests), []
    loop, end = asyncio.get_running_loop(), time.perf_counter() + seconds

    async def connect() -> None:
        for pause in itertools.chain((0.0, 0.1, 0.5, 1.0, 2.0)):
            await asyncio.sleep(pause)
            try:
                _, client = await loop.create_connection(
                    lambda: _Client(numbered, replies, end), *address
                )
            except OSError:  # its backlog is full
                continue
            await client.done
            return
        if (missed := next(numbered, None)) is not None:
            replies.append(Reply(missed[0], 0, 0.0, b"", b""))

    await asyncio.gather(*(connect() for _ in range(clients)))
    return replies


def latencies(replies: Iterable[Reply]) -> dict[str, float]:
    """Returns p50, p95 and p99 of what was answered with 200, in milliseconds; nan without any."""
    taken = [1e3 * reply.seconds for reply in replies if reply.status == 200] or [float("nan")]
    return {f"p{p}_ms": float(np.percentile(taken, p)) for p in (50, 95, 99)}
