"""A run on a Cloud TPU slice, from its creation to its end: what launch/tpu_vm.sh describes.

Every command goes through `call`, which only prints it with --dry-run. Exit codes are those of the
run; 2 for a mistake in the command and what Google refuses, 1 when the slice does not answer.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
LEFT_BEHIND = (".git", ".venv*", "./runs", "__pycache__", "*.egg-info", ".*_cache")
VERSIONS = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
OLDER = "tpu-ubuntu2204-base"  # v4 and before
THERE = {"READY", "ACTIVE"}
GONE = {"PREEMPTED", "TERMINATED", "SUSPENDED", "FAILED"}
POLL = 20.0  # seconds between two looks at the state
SETTLE = 6  # looks until a preempted slice says so
FINAL = {0, 1, 2, 129, 130, 143}  # exit codes of a run that is not to be started again
AGAIN = 3  # times that it is, on a slice that was not preempted


class Problem(Exception):
    """What ends the launcher, in one line; its exit code."""

    def __init__(self, text: str, code: int = 2):
        super().__init__(text)
        self.code = code


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Problem(f"{message}; see launch/tpu_vm.sh")


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    try:
        options = parse(argv)
        return manage(Slice(options), options)
    except Problem as e:
        say(e)
        return e.code
    except OSError as e:  # a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more
        say(f"{e.filename or 'what is printed'}: {e.strerror}")
        return 2
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
        name, _, file = argument.partition("=")
        if name == "--config" and not (
            (CHECKOUT / file).is_file() or (CHECKOUT / file.rpartition(":")[0]).is_file()
        ):
            raise Problem(f"{argument}: write a file of the checkout {CHECKOUT}, which is copied")
        if name == "--config" and Path(file).is_absolute():
            raise Problem(f"{argument}: write it relative to the checkout {CHECKOUT}")
    return options


def manage(tpu: "Slice", options: argparse.Namespace) -> int:
    """Creates, runs, fetches and deletes, as far as the options say so."""
    code = 0
    if options.run or not (options.stop or options.fetch or options.delete):
        tpu.bring_up()
    try:
        if options.run:
            code = survive(tpu, options.run)
        if options.stop:
            tpu.on("all", "bash tpu_worker.sh stop", "the run cannot be stopped")
        if options.fetch:
            tpu.fetch(options.workdir, options.fetch)
    except Problem as e:
        if not options.delete:
            raise
        say(e)  # and does not go on to cost money
        code = e.code
    if options.delete:
        tpu.delete()
    return code


def survive(tpu: "Slice", arguments: list[str]) -> int:
    """Runs until the run ends by itself; returns its exit code."""
    tries = 0
    while True:
        try:
            tpu.start(arguments)
            code = tpu.follow()
        except Problem as e:  # a host that does not answer
            code, problem = None, e
        if code in {0, 2}:
            return code
        if tpu.is_gone():
            say(f"{tpu.name} was preempted: the run resumes when it is there again")
            tpu.bring_up()
            continue
        tries += 1
        if code in FINAL or tries > AGAIN:
            if code is None:
                raise problem
            return code
        why = problem if code is None else f"the run ended with exit code {code}"
        say(f"{why}; trying again, {tries} of {AGAIN}")


class Slice:
    """A slice, through gcloud."""

    def __init__(self, options: argparse.Namespace):
        self.name, self._zone, self._type = options.name, f"--zone={options.zone}", options.type
        self._options, self._imagined = options, "" if options.type else "READY"
        self._kind = "queued-resources" if options.queue else "tpu-vm"

    def call(self, *words: str, shown: bool = False, dry: str = "") -> subprocess.CompletedProcess:
        """Runs a command; with --dry-run prints it and returns what it would say.

        Args:
          words: of the command.
          shown: what it prints is for the user.
          dry: what it would print.
        """
        if self._options.dry_run:
            print(shlex.join(words), flush=True)
            return subprocess.CompletedProcess(words, 0, dry, "")
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        out, err = (None, null) if shown else (pipe, pipe)
        try:
            return subprocess.run(words, stdin=null, stdout=out, stderr=err, text=True)
        except FileNotFoundError as e:
            raise Problem(f"there is no {words[0]} here: it is of the Google Cloud CLI") from e

    def gcloud(self, group: str, verb: str, *words: str, **more) -> subprocess.CompletedProcess:
        """Runs a command about TPUs."""
        words = ("compute", "tpus", group, verb, *words, self._zone, "--quiet")
        return self.call("gcloud", *words, **more)

    def state(self) -> str:
        """Returns the state that Google names, "" if the slice is not there."""
        form = "--format=value(state.state)" if self._options.queue else "--format=value(state)"
        done = self.gcloud(self._kind, "describe", self.name, form, dry=self._imagined)
        if done.returncode == 0:
            return done.stdout.strip()
        if "NOT_FOUND" in done.stderr or "not found" in done.stderr:
            return ""
        raise Problem(f"gcloud does not tell the state of {self.name}: {reason(done)}")

    def bring_up(self) -> None:
        """Returns when the slice is there, created if it was not."""
        created, again, told = False, False, ""
        while (state := self.state()) not in THERE:
            if state == "" or state in GONE:
                if not self._type:
                    what = f"is {state}" if state else "is not there"
                    raise Problem(f"{self.name} {what}: --type=TYPE creates it")
                if created and state == "FAILED":
                    why = "--format=value(state.failedData.error.message)"
                    why = self.gcloud(self._kind, "describe", self.name, why).stdout.strip()
                    raise Problem(f"the request for {self.name} has failed: {why}", 1)
                if state:
                    self.delete()
                    again = True
                created = self._create(again) or created
            elif state == "STOPPED":
                raise Problem(f"{self.name} is STOPPED: gcloud compute tpus tpu-vm start it")
            else:
                if state != told:
                    say(f"{self.name} is {state}")
                told = state
                time.sleep(POLL)

    def _create(self, again: bool) -> bool:
        """Asks for the slice; False: there is no room for it at the moment.

        Args:
          again: it was there before, so that waiting for it is worth while.
        """
        name, o = self.name, self._options
        version = o.version or VERSIONS.get(self._type.partition("-")[0], OLDER)
        words = [f"--accelerator-type={self._type}", *["--spot"] * o.spot]
        words += [f"--runtime-version={version}", f"--node-id={name}"] if o.queue else []
        words += [] if o.queue else [f"--version={version}"]
        say(f"creating {name}: {self._type}{' spot' * o.spot}")
        done = self.gcloud(self._kind, "create", name, *words)
        self._imagined = "ACTIVE" if o.queue else "READY"
        if done.returncode == 0:
            return True
        text = reason(done)
        full = "capacity" in text.lower()
        if full and again:
            say(f"{text}: trying again")
            time.sleep(3 * POLL)
            return False
        hint = " (--queue waits for it)" if full and not o.queue else ""
        raise Problem(f"{name} cannot be created: {text}{hint}")

    def delete(self) -> None:
        """Deletes the slice."""
        force = ["--force"] * self._options.queue  # its machines as well
        done = self.gcloud(self._kind, "delete", self.name, *force)
        if done.returncode and "NOT_FOUND" not in done.stderr:
            raise Problem(f"{self.name} cannot be deleted, it may cost money: {reason(done)}", 1)
        self._imagined = ""

    def is_gone(self) -> bool:
        """Returns whether the slice was preempted; it takes a while until Google says so."""
        if not self._type:
            return False
        for _ in range(SETTLE):
            if self.state() not in THERE:
                return True
            time.sleep(POLL)
        return False

    def on(self, worker: str, command: str, problem: str = "", **more):
        """Runs a command on worker N or "all".

        Raises:
          Problem: `problem` is given, and the command failed; with the workers that do not answer.
        """
        words = (self.name, f"--worker={worker}", f"--command={command}")
        done = self.gcloud("tpu-vm", "ssh", *words, **more)
        if done.returncode and problem:
            silent = self._silent()
            who = f"{' and '.join(silent)} of {self.name} cannot be reached" if silent else problem
            raise Problem(f"{who}: {reason(done)}", 1)
        return done

    def _silent(self) -> list[str]:
        """Returns the workers that do not answer."""
        form = "--format=value(networkEndpoints.len())"
        found = self.gcloud("tpu-vm", "describe", self.name, form).stdout.strip()
        workers = [str(i) for i in range(int(found) if found.isdigit() else 0)]
        return [f"worker {i}" for i in workers if self.on(i, "true").returncode]

    def start(self, arguments: list[str]) -> None:
        """Copies the checkout, installs it and starts the run; one that goes on stays as it is."""
        archive = Path(tempfile.gettempdir()) / f"{os.getuid()}-{self.name}" / "jaxcls.tgz"
        if not self._options.dry_run:
            archive.parent.mkdir(exist_ok=True)
        say(f"installing on {self.name}")
        without = [f"--exclude={name}" for name in LEFT_BEHIND]
        done = self.call("tar", "-C", str(CHECKOUT), *without, "-czf", str(archive), ".")
        if done.returncode:
            raise Problem(f"{archive} cannot be written: {reason(done)}")
        files = (str(archive), str(CHECKOUT / "launch" / "tpu_worker.sh"))
        done = self.gcloud("tpu-vm", "scp", *files, f"{self.name}:", "--worker=all")
        if done.returncode:
            silent = " and ".join(self._silent()) or "a worker"
            raise Problem(f"{silent} of {self.name} cannot be reached: {reason(done)}", 1)
        self.on("all", "bash tpu_worker.sh install", "the installation failed")
        start = shlex.join(["bash", "tpu_worker.sh", "start", *arguments])
        self.on("all", start, "the run cannot be started")

    def follow(self) -> int:
        """Shows worker 0's log until the run ends; returns its exit code.

        Raises:
          Problem: worker 0 cannot be reached any more.
        """
        lines = "+1"
        while True:
            self.on("0", f"bash tpu_worker.sh follow {lines}", shown=True)
            code = self.on("0", "bash tpu_worker.sh code", "the run cannot be asked", dry="0")
            if code.stdout.strip().isdigit():
                break
            lines = "10"  # only the connection was lost
            time.sleep(POLL)
        if code := int(code.stdout):
            self.on("all", "bash tpu_worker.sh last", shown=True)
        return code

    def fetch(self, workdir: str, folder: str) -> None:
        """Copies the working directory to a folder of this machine."""
        if "://" in workdir:
            words = ("gcloud", "storage", "rsync", "--recursive", workdir, folder)
            if not self._options.dry_run:
                Path(folder).mkdir(parents=True, exist_ok=True)
            done = self.call(*words)
        else:
            words = (f"{self.name}:{workdir}", folder, "--recurse", "--worker=0")
            done = self.gcloud("tpu-vm", "scp", *words)
        if done.returncode:
            raise Problem(f"{workdir} cannot be copied to {folder}: {reason(done)}", 1)


def reason(done: subprocess.CompletedProcess) -> str:
    """Returns why gcloud failed, from its last error on, in one line."""
    text = re.split(r"ERROR: (?:\(.*?\) )?", done.stderr or "")[-1]
    if message := re.search(r'"message": (".*")', text):
        text = json.loads(message[1])
    return " ".join(text.split())[:500] or f"exit code {done.returncode}"


def say(text) -> None:
    print(f"tpu_vm.sh: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
