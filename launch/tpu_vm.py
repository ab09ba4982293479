"""A run on a Cloud TPU slice, from its creation to its end: what launch/tpu_vm.sh describes.

Exit codes are those of the run; 2 for a mistake in the command and what Google refuses, 1 when the
slice does not answer.
"""

import argparse
import fnmatch
import os
import re
import signal
import sys
import time
from pathlib import Path

from tpu_slice import AGAIN, CHECKOUT, LEFT_BEHIND, POLL, Problem, Slice, say

INSTALLED = r"(~|/root|/home/[^/]+)/jaxcls(/|$)"  # what an installation removes
FINAL = {0, 1, 2, 129, 130, 143}  # exit codes of a run that is not to be started again


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Problem(f"{message}; see launch/tpu_vm.sh")


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    try:
        options = parse(argv)
        return manage(Slice(options), options)
    except (Problem, OSError) as e:
        return tell(e)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        say("left; a run that was started goes on: the same command shows it, --stop stops it")
        return 130


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the options; `run` are the arguments of the run, empty without one."""
    parser = Parser(prog="tpu_vm.sh", allow_abbrev=False, add_help=False)
    parser.add_argument("name")
    parser.add_argument("zone")
    for name in ("type", "version", "fetch", "workdir"):
        parser.add_argument(f"--{name}", default="")
    for name in ("spot", "queue", "delete", "stop", "dry-run"):
        parser.add_argument(f"--{name}", action="store_true")
    options, rest = parser.parse_known_args(argv)
    for argument in rest:
        if not argument.startswith(("--config", "--mode=")):
            raise Problem(f"{argument}: there is no such option; see launch/tpu_vm.sh")
    options.fetch = os.path.expanduser(options.fetch)  # a shell leaves --fetch=~/run as it is
    options.run = [f"--workdir={options.workdir}", *rest] if rest else []
    if rest and not options.workdir:
        raise Problem("--workdir=gs://BUCKET/RUN is missing")
    if rest and options.stop:
        raise Problem("--stop stops the run that goes on: leave --config out")
    if options.fetch and not options.workdir:
        raise Problem("--fetch=DIR needs --workdir=gs://BUCKET/RUN: what is to be copied")
    if options.spot and not options.type:
        raise Problem("--spot needs --type=TYPE, such as v5litepod-16: what is to be created")
    if not (rest or options.stop or options.fetch or options.delete or options.type):
        raise Problem("nothing to do: write --config=FILE --workdir=gs://BUCKET/RUN")
    for argument in rest:
        if argument.startswith("--config="):
            check_config(argument)
    if options.workdir:
        check_workdir(options)
    return options


def check_config(argument: str) -> None:
    """Raises Problem unless the file of --config=FILE[:ARG] is copied to the hosts."""
    file = argument.partition("=")[2]
    file = file if (CHECKOUT / file).is_file() else file.rpartition(":")[0]
    parts = Path(os.path.normpath(file)).parts
    if not (CHECKOUT / file).is_file() or ".." in parts:
        raise Problem(f"{argument}: write a file of the checkout {CHECKOUT}, which is copied")
    if Path(file).is_absolute():
        raise Problem(f"{argument}: write it relative to the checkout {CHECKOUT}")
    for name in (f"./{parts[0]}", *parts):  # as tar reads the patterns
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_BEHIND):
            why = f"{name} is not copied to the hosts"
            raise Problem(f"{argument}: {why}: copy the file into configs/")


def check_workdir(options: argparse.Namespace) -> None:
    """Raises Problem if checkpoints in the working directory would be lost."""
    path = options.workdir
    if "://" in path:
        return
    if not path.startswith(("/", "~/")):  # the run is in ~/jaxcls, --fetch in ~
        raise Problem(f"--workdir={path}: write gs://BUCKET/RUN, or a path from / or ~/")
    if options.run and re.match(INSTALLED, os.path.normpath(path)):
        raise Problem(f"--workdir={path}: an installation removes ~/jaxcls: write another path")
    if options.run and options.spot:
        raise Problem(f"--workdir={path}: a preempted disk is lost: write gs://BUCKET/RUN")


def manage(tpu: Slice, options: argparse.Namespace) -> int:
    """Does what the options say; with --delete the slice goes in the end, whatever that is."""
    try:
        code = work(tpu, options)
    except (Problem, OSError) as e:
        if not options.delete or getattr(e, "stays", False):
            raise
        code = tell(e)  # and does not go on to cost money
    if options.delete:
        tpu.delete()
    return code


def work(tpu: Slice, options: argparse.Namespace) -> int:
    """Creates, runs, stops and fetches, as far as the options say so."""
    code = 0
    if options.run or not (options.stop or options.fetch or options.delete):
        tpu.bring_up()
    if options.run:
        code = survive(tpu, options.run)
    if options.stop:
        tpu.on("all", "bash tpu_worker.sh stop", "the run cannot be stopped")
    if options.fetch:
        tpu.fetch(options.workdir, options.fetch)
    return code


def survive(tpu: Slice, arguments: list[str]) -> int:
    """Runs until the run ends by itself; returns its exit code."""
    ends, outages = 0, 0
    while True:
        code = problem = None
        try:
            tpu.start(arguments)
            outages = 0  # every host has answered
            code = tpu.follow()
        except Problem as e:  # a host that does not answer, or no network here
            problem = e
        if code in {0, 2}:
            return code
        if tpu.is_gone():
            say(f"{tpu.name} was preempted: the run resumes when it is there again")
            tpu.bring_up()
        elif problem:
            outages += 1
            if outages > AGAIN:
                raise problem
            say(f"{problem}; trying again, {outages} of {AGAIN}")
            time.sleep(3 * POLL * 2 ** (outages - 1))  # the run may go on meanwhile
        else:
            ends += 1
            if code in FINAL or ends > AGAIN:
                return code
            say(f"the run ended with exit code {code}; trying again, {ends} of {AGAIN}")


def tell(e: Exception) -> int:
    """Says what went wrong; returns the exit code."""
    if isinstance(e, Problem):
        say(e)
        return e.code
    if not e.filename:  # what is printed goes to a full disk, and Python flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    say(f"{e.filename or 'what is printed'}: {e.strerror}")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
