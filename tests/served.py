"""Servers for tests: in a thread of this process, or as a user starts them."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import uvicorn

from jaxcls.serve import connections


@contextlib.contextmanager
def in_thread(server, most=64, patience=30.0) -> Iterator[tuple[str, int]]:
    """Yields host and port of a `jaxcls.serve.app.Server` that listens."""
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(
        connections.settings(server.app(), connections=most, patience=patience)
    )
    thread = threading.Thread(target=connections.run, args=(running, listening))
    address, server.running = listening.getsockname(), running
    thread.start()
    try:
        yield address
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def in_process(*arguments) -> Iterator[tuple[subprocess.Popen, tuple[str, int]]]:
    """Yields process, and host and port, of python -m jaxcls.serve."""
    command = [sys.executable, "-m", "jaxcls.serve", *map(str, arguments), "--port=0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://([\w.]+):(\d+)$", line):
                break
        else:
            raise AssertionError("".join(said))
        reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
        reader.start()
        process.said = said
        yield process, (found[1], int(found[2]))
    finally:
        process.terminate()
        process.wait(90)


class Client:
    """A connection on which requests are written byte by byte."""

    def __init__(self, address, timeout=20.0):
        self.socket = socket.create_connection(address, timeout)
        self.read = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.read.close()
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Sends bytes."""
        self.socket.sendall(b"".join(parts))

    def post(self, body: bytes, path="/predict", **headers) -> None:
        """Sends a request; a header None is left out."""
        self.send(head(path, **{"content_length": len(body)} | headers), body)

    def response(self, method="POST"):
        """Returns status, headers and body (JSON as objects) of the next response.

        Raises:
          ConnectionError: there is none.
        """
        line = self.read.readline().decode()
        if not line:
            raise ConnectionError("closed")
        status, headers = int(line.split()[1]), {}
        while (line := self.read.readline().decode().strip()) != "":
            key, _, value = line.partition(":")
            headers[key.lower()] = value.strip()
        body = b""
        if method != "HEAD" and status >= 200:
            body = self.read.read(int(headers.get("content-length", 0)))
        if headers.get("content-type") == "application/json" and body:
            body = json.loads(body)
        return status, headers, body


def head(path="/predict", method="POST", **headers) -> bytes:
    """Returns the line and the headers of a request."""
    lines = [f"{method} {path} HTTP/1.1", "host: x"]
    lines += [f"{k.replace('_', '-')}: {v}" for k, v in headers.items() if v is not None]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def memory(pid: int) -> int:
    """Returns the resident memory of a process, bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files(pid: int) -> int:
    """Returns the number of file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))
