#!/usr/bin/env bash
# Cloud TPU VMs, one host or a whole slice:
#   launch/tpu_vm.sh TPU_NAME ZONE --config=configs/resnet50_vd.py --workdir=gs://BUCKET/RUN ...
# Copies this checkout to every host, installs it there and starts the run in the foreground. The
# same command resumes after a preemption. Images are read from a file system: a disk that is
# attached to every host, or a bucket mounted with gcsfuse.
set -euo pipefail
usage='usage: launch/tpu_vm.sh TPU_NAME ZONE --config=FILE --workdir=gs://BUCKET/RUN ...'
name=${1:?$usage}
zone=${2:?$usage}
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
tpu=(gcloud compute tpus tpu-vm)
tar -C "$here" --exclude=.git -czf /tmp/jaxcls.tgz .
"${tpu[@]}" scp /tmp/jaxcls.tgz "$name":/tmp/jaxcls.tgz --zone="$zone" --worker=all
printf -v arguments '%q ' "$@"
"${tpu[@]}" ssh "$name" --zone="$zone" --worker=all --command="
    set -e
    mkdir -p ~/jaxcls && tar -C ~/jaxcls -xzf /tmp/jaxcls.tgz && cd ~/jaxcls
    [ -d ~/venv ] || python3 -m venv ~/venv
    source ~/venv/bin/activate
    pip install --quiet -e '.[tpu,gcs]'
    python3 -m jaxcls.main --distributed $arguments"
