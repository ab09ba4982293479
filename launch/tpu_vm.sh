#!/usr/bin/env bash
# Cloud TPU VMs, one host or a whole slice, with gcloud. Copies this checkout to every host, installs
# it, starts the run there and shows the log of worker 0; ends with the exit code of the run:
#   launch/tpu_vm.sh NAME ZONE --config=configs/resnet50_vd.py --workdir=gs://BUCKET/RUN ...
# The same command shows a run again that goes on, and resumes one that does not. On a single host that
# is not --spot a path from / or ~/ will do as --workdir. More of it:
#   --type=v5litepod-16  creates the slice if it is not there
#   --spot               a cheap one, which is brought back, and the run resumed, when it was preempted
#   --queue              asks for it as a queued resource and waits until it is there
#   --version=VERSION    its software (otherwise what Google names for the type)
#   --fetch=DIR          at the end copies the working directory to DIR
#   --delete             at the end, whatever it is, deletes the slice (not one that was STOPPED)
#   --dry-run            prints every command and runs none
# Ctrl-C leaves the run alone. With a run that goes on, or none, and --queue if it was created so:
#   launch/tpu_vm.sh NAME ZONE --stop                                   saves and stops it, and waits
#   launch/tpu_vm.sh NAME ZONE --workdir=gs://BUCKET/RUN --fetch=DIR
#   launch/tpu_vm.sh NAME ZONE --delete
# Images: --config.data.root=gs://BUCKET/..., or a disk that is attached to every host. What is in
# the checkout and should not travel: keep it elsewhere, or name it runs or .venv.
exec python3 "$(dirname "$0")/tpu_vm.py" "$@"
