#!/usr/bin/env bash
# On every host of a slice, for tpu_vm.py: install, start ARGUMENTS, follow LINES, code, last, stop.
# The run hangs on no connection: its log is ~/jaxcls.log, its exit code will be in ~/jaxcls.code.
set -euo pipefail
cd
running() { [ -e jaxcls.pid ] && kill -0 "$(cat jaxcls.pid)" 2>/dev/null; }
case ${1:-} in
install) # Google's images have a Python that is too old
    if running; then exit; fi
    rm -rf jaxcls && mkdir jaxcls && tar -C jaxcls -xzf jaxcls.tgz
    if [ ! -x venv/bin/python ]; then
        PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
        python3 -m uv venv --quiet --python 3.12 venv
    fi
    python3 -m uv pip install --quiet --python venv/bin/python -e 'jaxcls[tpu,gcs]'
    ;;
start)
    shift
    if running; then exit; fi
    rm -f jaxcls.code
    cd jaxcls
    # shellcheck disable=SC2016 # the inner shell knows the exit code
    setsid bash -c '"$@"; echo $? >~/jaxcls.code' run \
        ~/venv/bin/python -m jaxcls.main --distributed "$@" </dev/null >~/jaxcls.log 2>&1 &
    echo $! >~/jaxcls.pid
    ;;
follow) tail -n "$2" -s 0.2 -F --pid="$(cat jaxcls.pid)" jaxcls.log 2>/dev/null ;;
code) running || grep -s . jaxcls.code || echo 137 ;; # killed, a full disk, or the host restarted
last) tail -n 3 jaxcls.log | sed "s/^/$(hostname): /" ;;
stop) # and returns when it has saved
    while running && ! pkill -TERM -P "$(cat jaxcls.pid)"; do sleep 0.2; done # it may just begin
    if running; then tail -f /dev/null -s 0.2 --pid="$(cat jaxcls.pid)"; fi
    ;;
*) exit 2 ;;
esac
