"""A process that passes bytes on between JAX's processes of a run, started by jaxcls.processes.

    python -m jaxcls.relay HOST PORT SERVICE [LINES]

It is a process of its own because JAX waits for the others while it holds Python's lock. It prints
the port that it listens on, or why it cannot, and ends soon after the process that holds its stdin.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

HELLO = b"jaxcls "  # begins a connection of lines, which is for LINES
LINGER = 5.0  # seconds that JAX takes a lost coordinator for a slow one


def main(host: str, port: int, service: str, lines: str = "") -> None:
    """Listens; `service` and `lines` are HOST:PORT where connections go."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    both = not host and socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
        )
    except OSError as e:
        print(os.strerror(e.errno or 0), flush=True)
        return
    print(server.getsockname()[1], flush=True)
    thread(accept, server, lambda c: choose(c, address(service), lines and address(lines)))
    sys.stdin.buffer.read()
    close(server)  # the next run may have the port
    time.sleep(LINGER)
    os._exit(0)


def address(text: str) -> tuple[str, int]:
    """Returns host and port."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def thread(function: Callable, *arguments) -> None:
    """Calls a function in a thread that the interpreter does not wait for."""
    threading.Thread(target=function, args=arguments, daemon=True, name="processes").start()


def accept(server: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    """Handles each connection in a thread, until the server is closed."""

    def safely(connection):
        with contextlib.suppress(OSError):
            handle(connection)

    while server.fileno() >= 0:
        try:
            connection, _ = server.accept()
        except OSError:  # closed, or short of files
            time.sleep(0.1)
        else:
            thread(safely, connection)


def choose(near: socket.socket, service, lines) -> None:
    """Passes on a connection to where its first bytes say."""
    begin = b""
    while lines and len(begin) < len(HELLO) and (more := near.recv(len(HELLO) - len(begin))):
        begin += more
    if lines and begin == HELLO:
        keep_alive(near)
        forward(near, lines, begin, 0)
    else:
        forward(near, service, begin, LINGER)


def forward(near: socket.socket, target: tuple[str, int], begin: bytes, linger: float) -> None:
    """Passes bytes on in both directions until one side ends; the far end shows `linger` late."""
    far = None
    while far is None:
        try:
            far = socket.create_connection(target, timeout=5)
        except OSError:
            time.sleep(0.1)
    far.settimeout(None)
    far.sendall(begin)

    def pump(source, sink, seconds):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        time.sleep(seconds)
        for end in (source, sink):
            close(end)

    thread(pump, near, far, 0)
    pump(far, near, linger)


def close(connection: socket.socket) -> None:
    """Ends a connection, also for threads that wait on it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def keep_alive(connection: socket.socket) -> None:
    """Notices within 12 seconds that a machine or the network is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = ("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 4)
    for name, value in (*options, ("TCP_USER_TIMEOUT", 12_000)):  # ms, of what was sent
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
