"""Programs of clusters and clouds that are not here: what stands in for them writes down each call.

What they answer is told beforehand: each answer goes to the first call that has its text in it.
"""

import os
import shlex
from pathlib import Path

PROGRAM = r"""#!/bin/bash
here=${0%/*}
printf '%s\0' "${0##*/}" "$@" $'\n' >>"$here/called"
for answer in "$here"/answers/*; do
    . "$answer"
    if [[ "${0##*/} $*" == *"$text"* ]]; then
        rm "$answer"
        printf %s "$out"
        printf %s "$err" >&2
        exit "$code"
    fi
done
"""


class StandIns:
    """Programs in a folder, which is to be the first of the PATH."""

    def __init__(self, folder: Path, *names: str):
        self.folder = folder
        (folder / "answers").mkdir(parents=True)
        for name in names:
            (folder / name).write_text(PROGRAM)
            (folder / name).chmod(0o755)
        self.answer()

    @property
    def path(self) -> str:
        """The PATH with them."""
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def answer(self, *answers: tuple) -> None:
        """Sets the answers that are still to come: (text, exit code, stdout, stderr), or less."""
        for file in (self.folder / "answers").iterdir():
            file.unlink()
        for i, answer in enumerate([*answers, ("no such call",)]):
            words = zip(("text", "code", "out", "err"), (*answer, *("", 0, "", "")[len(answer) :]))
            lines = [f"{name}={shlex.quote(str(word))}" for name, word in words]
            (self.folder / "answers" / f"{i:02}").write_text("\n".join(lines))
        (self.folder / "called").write_text("")

    def called(self) -> list[str]:
        """Returns the calls, as a shell would read them."""
        calls = (self.folder / "called").read_text().split("\0\n\0")[:-1]
        return [shlex.join(call.split("\0")) for call in calls]

    def left(self) -> int:
        """Returns the number of answers that nobody has asked for."""
        return len(list((self.folder / "answers").iterdir())) - 1
