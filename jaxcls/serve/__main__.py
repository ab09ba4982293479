"""python -m jaxcls.serve [NAME=]DIR... [--port=8000] [--host=127.0.0.1]

Answers over HTTP what images show. DIR is a run, a checkpoint or converted weights; several are
models by their NAME, that of the directory where none is given. What can be asked:

    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict        # also ?model=NAME&top=3
    curl -F image=@cat.jpg -F image=@dog.jpg http://127.0.0.1:8000/predict

and JSON, {"image": BASE64}. / is a page to drop an image on, /health, /ready, /models, /metrics
(Prometheus) and /openapi.json are for programs, /v2/... is the Open Inference Protocol, with
tensors in JSON or binary, for clients of KServe and Triton (launch/kserve.yaml).

Images that arrive at the same time are computed together. What is beyond --requests, --memory and
--connections is refused (503), so that memory and waiting are bounded. SIGTERM ends it when what
it holds is answered. There is no password and no encryption: for a network that is not trusted put
a proxy before it.
Exit codes: 0; 2: a mistake in command or data.
"""

import argparse
import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxcls.command import Arguments, exit_with, start_jax, told

NAME = re.compile(r"(?!\.+$)[\w.-]+")  # of an address, in which dots alone are a folder
BACKLOG = 2048  # connections that wait to be accepted
SWITCH = (
    5e-4  # seconds: threads that decode wait for the one that refuses, under overload at each step
)
FILES = 512  # open ones besides connections: those that are told that they are too many, JAX's


def parser() -> Arguments:
    """Returns the options."""
    usage, _, description = __doc__.partition("\n\n")
    found = Arguments(
        prog="python -m jaxcls.serve",
        usage=usage,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("runs", metavar="[NAME=]DIR", nargs="+", help="runs, checkpoints, weights")
    found.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for all; 127.0.0.1")
    found.add_argument("--port", type=int, default=8000, help="0: any that is free; 8000")
    found.add_argument("--batch-size", type=int, default=32, help="images together; 32")
    found.add_argument("--wait", type=float, default=2, help="for further images, ms; 2")
    found.add_argument("--requests", type=int, default=512, help="images held at once; 512")
    found.add_argument("--memory", type=float, default=512, help="of all bodies held, MB; 512")
    found.add_argument("--connections", type=int, default=4096, help="open at once; 4096")
    found.add_argument("--body", type=float, default=20, help="of a request at most, MB; 20")
    found.add_argument("--pixels", type=float, default=50, help="of an image, millions; 50")
    found.add_argument("--images", type=int, default=64, help="of a request at most; 64")
    found.add_argument("--seconds", type=float, default=30, help="to send and to answer; 30")
    return found


@told
def main(argv: Sequence[str] | None = None) -> int:
    """Serves until it is told to end; returns the exit code."""
    args = parser().parse_args(argv)
    for name in (
        *("batch_size", "requests", "memory", "connections"),
        *("body", "pixels", "images", "seconds"),
    ):
        if not 0 < getattr(args, name) < 1e9:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}={getattr(args, name)}: write a number above 0")
    if args.memory < args.body:
        raise ValueError(f"--memory={args.memory:g}: write at least --body, {args.body:g} MB")
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port={args.port}: write a number from 0 to 65535")
    if not 0 <= args.wait <= 1000:
        raise ValueError(f"--wait={args.wait:g}: write milliseconds, from 0 to 1000")
    try:
        import uvicorn

        from jaxcls.serve.app import Limits, Server
        from jaxcls.serve.connections import run, settings
    except ModuleNotFoundError as e:
        raise ValueError(f"jaxcls.serve needs {e.name}: pip install 'jaxcls[serve]'") from e
    if not args.host:  # which would be all of this machine's
        raise ValueError("--host=: write an address of this machine; 0.0.0.0: all")
    given = dict(map(_named, args.runs))
    if len(given) < len(args.runs):
        raise ValueError("two models have the same name: write NAME=DIR")
    listening = _listen(args.host, args.port)
    start_jax()
    from jaxcls import predictor

    say = lambda line: print(line, file=sys.stderr, flush=True)
    loaded = {
        name: predictor.load(run, batch_size=min(args.batch_size, args.requests), report=say)
        for name, run in given.items()
    }
    limits = Limits(
        body=int(args.body * 1e6),
        pixels=int(args.pixels * 1e6),
        images=args.images,
        seconds=args.seconds,
        requests=args.requests,
        memory=int(args.memory * 1e6),
    )
    server = Server(loaded, limits, wait=args.wait / 1000)
    for model in server.models.values():
        model.warm_up()
    config = settings(server.app(), connections=_files(args.connections))
    with _in_words(args.host, args.port):
        listening.listen(BACKLOG)  # from here on who asks is answered
    host, port = listening.getsockname()[:2]
    say(f"{', '.join(given)}: http://{host}:{port}")
    sys.setswitchinterval(SWITCH)
    ending = uvicorn.Server(config)

    @contextlib.contextmanager
    def until_told() -> Iterator[None]:  # uvicorn's own would raise the signal once more at the end
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.handle_exit, number, None)
        yield

    ending.capture_signals = until_told
    run(ending, listening)
    return 0


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or (not NAME.fullmatch(name) and os.path.exists(text)):
        name, path = Path(text).absolute().name, text
    if not NAME.fullmatch(name) or not path:
        raise ValueError(
            f"{text}: {name!r} is no name for an address: write NAME=DIR, NAME of letters, digits, "
            "dot, hyphen and underscore"
            if path
            else f"{text}: write NAME=DIR"
        )
    return name, path


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        with _in_words(host, port):
            listening.bind((host, port))
    except ValueError:
        listening.close()
        raise
    return listening


@contextlib.contextmanager
def _in_words(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        why = "it is in use" if e.errno == errno.EADDRINUSE else e.strerror
        raise ValueError(f"--host={host} --port={port}: {why}: choose another") from e


def _files(connections: int) -> int:
    """Returns how many connections there may be; raises the limit of open files for them."""
    try:
        import resource
    except ImportError:  # Windows
        return connections
    wanted, (soft, hard) = connections + FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted and soft != resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(connections, soft - FILES))
    return connections


if __name__ == "__main__":
    exit_with(main)
