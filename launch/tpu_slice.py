"""A Cloud TPU slice, through gcloud, for tpu_vm.py.

Every command goes through `call`, which only prints it with --dry-run.
"""

import argparse
import json
import os
import re
import shlex
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
# ssh ends where nothing has answered for two minutes: a machine was asleep, or an address is new
ALIVE = "--ssh-flag=-o ServerAliveInterval=30 -o ServerAliveCountMax=4"
SETTLE = 6  # looks until a preempted slice says so
AGAIN = 3  # times that what may pass is tried again
MISSING = "NOT_FOUND|not found"  # what gcloud says about a slice that is not there
ANSWER = (  # what it says when it would say the same again; all else may be the network here
    f"{MISSING}|PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|active account|required property"
)


class Problem(Exception):
    """What ends the launcher, in one line; its exit code; whether the slice stays all the same."""

    def __init__(self, text: str, code: int = 2, stays: bool = False):
        super().__init__(text)
        self.code, self.stays = code, stays


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
            why = f"there is no {words[0]} here: it is of the Google Cloud CLI"
            raise Problem(why, stays=True) from e

    def gcloud(self, group: str, verb: str, *words: str, **more) -> subprocess.CompletedProcess:
        """Runs a command about TPUs."""
        words = ("compute", "tpus", group, verb, *words, self._zone, "--quiet")
        return self.call("gcloud", *words, **more)

    def ask(self, verb: str, *words: str, dry: str = "") -> subprocess.CompletedProcess:
        """Runs a command about the slice, several times if it does not say what is wrong."""
        for _ in range(AGAIN):
            done = self.gcloud(self._kind, verb, self.name, *words, dry=dry)
            if done.returncode == 0 or re.search(ANSWER, done.stderr):
                return done
            time.sleep(POLL)  # the network here may be back by then
        return self.gcloud(self._kind, verb, self.name, *words, dry=dry)

    def state(self) -> str:
        """Returns the state that Google names, "" if the slice is not there."""
        form = "--format=value(state.state)" if self._options.queue else "--format=value(state)"
        done = self.ask("describe", form, dry=self._imagined)
        if done.returncode == 0:
            return done.stdout.strip()
        if re.search(MISSING, done.stderr):
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
                why = f"{self.name} is STOPPED, and stays: gcloud compute tpus tpu-vm start it"
                raise Problem(why, stays=True)  # somebody may want what is on its disk
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
        done = self.ask("delete", *force)
        if done.returncode and not re.search(MISSING, done.stderr):
            raise Problem(f"{self.name} cannot be deleted, it may cost money: {reason(done)}", 1)
        self._imagined = ""

    def is_gone(self) -> bool:
        """Returns whether the slice was preempted; it takes a while until Google says so.

        Raises:
          Problem: somebody has deleted it; what was preempted stays to be seen.
        """
        for _ in range(SETTLE if self._type else 0):
            try:
                state = self.state()
            except Problem:  # no network here, say: it is not known yet
                continue
            if state in {"", "DELETING"}:
                raise Problem(f"{self.name} was deleted: the same command creates it again", 1)
            if state not in THERE:
                return True
            time.sleep(POLL)
        return False

    def on(self, worker: str, command: str, problem: str = "", **more):
        """Runs a command on worker N or "all".

        Raises:
          Problem: `problem` is given, and the command failed; with the workers that do not answer.
        """
        words = (self.name, f"--worker={worker}", f"--command={command}", ALIVE)
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
