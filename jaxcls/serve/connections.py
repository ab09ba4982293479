"""Connections: how many there are, and how long one may take to ask or to take the answer.

uvicorn gives a connection that says nothing, or a header byte by byte, all the time in the world.
"""

import asyncio
import functools
import json
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD = 16 * 1024  # bytes of a request's line and headers
PATIENCE = 30  # seconds
SHUTDOWN = 60  # seconds for what is held when it is told to end
LINGER = 2  # seconds for what was sent to one that was refused: without, it may not arrive
PAUSE = 1.0  # seconds in which nothing is read from one whose request was refused, see REFUSED
SPARE = 256  # connections that are told so, beyond those that there may be

# Key of an ASGI scope, set by the application where there is too much to do. Who asks again at once
# would keep the server so busy with refusing that it gets to nothing else.
REFUSED = "jaxcls.refused"


class Connection(H11Protocol):
    """A connection that ends when it takes too long."""

    def __init__(self, *arguments: Any, most: int, patience: float, **options: Any):
        """Takes uvicorn's arguments, and

        Args:
          most: connections.
          patience: seconds for a header, between requests, and to take an answer.
        """
        super().__init__(*arguments, **options)
        self.most, self.patience, self._refused = most, patience, False
        self._due: asyncio.TimerHandle | None = None  # to ask
        self._taken: asyncio.TimerHandle | None = None  # to take an answer

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Is called at the beginning."""
        super().connection_made(transport)
        # head and body of an answer are sent one after the other: the second would wait 40 ms
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._within(self.patience)
        if len(self.connections) > self.most:
            self._refused = True
            transport.write(_response(503, f"more than {self.most} connections"))
            self._within(LINGER if len(self.connections) < self.most + SPARE else 0)

    def connection_lost(self, error: Exception | None) -> None:
        """Is called at the end."""
        self._within(None)
        self._stop_taking()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Is called with what the client sends."""
        if self._refused or self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._within(None)  # the application has its own limits

    def pause_writing(self) -> None:
        """Is called when the client does not take what is sent."""
        super().pause_writing()
        self._taken = self.loop.call_later(self.patience, self._give_up)

    def resume_writing(self) -> None:
        """Is called when it does."""
        self._stop_taking()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Is called when a request is answered."""
        unread = self.conn.their_state is h11.SEND_BODY
        super().on_response_complete()
        if self.cycle.response_complete:  # and there is no next one
            self._within(LINGER if unread else self.patience)
            if self.scope.get(REFUSED):
                self.flow.pause_reading()
                self.loop.call_later(PAUSE, self.flow.resume_reading)

    def shutdown(self) -> None:
        """Is called when the server ends: the answer that is due says that it is the last."""
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_response(400, "this is no HTTP request"))
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _within(self, seconds: float | None) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = None if seconds is None else self.loop.call_later(seconds, self._give_up)

    def _stop_taking(self) -> None:
        if self._taken is not None:
            self._taken.cancel()
        self._taken = None

    def _give_up(self) -> None:
        self.transport.abort()


def run(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serves until the server is told to end, on uvloop where there is one."""
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listening]))


def settings(app: Any, *, connections: int, patience: float = PATIENCE) -> uvicorn.Config:
    """Returns how an application is served.

    Args:
      app: ASGI application.
      connections: at most.
      patience: see `Connection`.
    """
    return uvicorn.Config(
        app,
        http=functools.partial(Connection, most=connections, patience=patience),
        ws="none",
        lifespan="on",
        log_level="error",  # a warning is what anybody may cause
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=PATIENCE,
        timeout_graceful_shutdown=SHUTDOWN,
        h11_max_incomplete_event_size=HEAD,
    )


def _response(status: int, reason: str) -> bytes:
    body = json.dumps({"error": reason}).encode()
    lines = [
        f"HTTP/1.1 {status} {'Bad Request' if status == 400 else 'Service Unavailable'}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *(["retry-after: 1"] if status == 503 else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
