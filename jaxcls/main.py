"""python -m jaxcls.main --config=FILE[:ARG] --workdir=DIR [--mode=train|eval] [--config.KEY=VALUE]

Trains a classifier, or evaluates one. The same command resumes a run that was interrupted; of a run
that was begun --workdir=DIR is enough, for both modes: DIR/config.json has its config.
Exit codes: 0 complete; 2 a mistake in command, config or data, or a full disk; 1 training stopped
because its numbers were not finite; 75 try again: another process was lost, the run was stuck,
storage does not answer; 143, 130 and 129 saved and stopped on SIGTERM, on Ctrl-C and on SIGHUP (the
terminal was closed)."""

import sys

from jaxcls import output, signals

if __name__ == "__main__":  # before the imports that take a while
    output.prepare()
    signals.watch()

from absl import app, flags

from jaxcls import command, processes

FLAGS = flags.FLAGS


@command.told
def main() -> int:
    """Runs the command and returns its exit code."""
    app.define_help_flags()
    command.define_config(FLAGS)
    flags.DEFINE_string("workdir", None, "directory of the run: checkpoints, logs, summary")
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "train, or evaluate a checkpoint")
    command.define_processes(FLAGS)
    command.parse(sys.argv, FLAGS, required=("workdir",))
    resume = lambda: ""
    if FLAGS.mode == "train":
        output.outlive_readers()
        resume = lambda: processes.how_to_resume(FLAGS.workdir)
    if sys.stderr.isatty():
        print("starting JAX ...", end="", file=sys.stderr, flush=True)
    return command.together(FLAGS, run, resume)


def run() -> int:
    """Trains or evaluates."""
    command.start_jax()
    from jaxcls import evaluate, probe, train  # only now: --help and a misspelt flag need no JAX

    training = probe.run if FLAGS.config.probe.decays else train.run
    try:
        return {"train": training, "eval": evaluate.run}[FLAGS.mode](FLAGS.config, FLAGS.workdir)
    except OSError as e:  # of a file that is open, such as a full disk: it does not say which
        e.filename = e.filename or FLAGS.workdir
        raise


if __name__ == "__main__":
    command.exit_with(main)
