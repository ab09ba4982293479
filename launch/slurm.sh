#!/usr/bin/env bash
# Slurm: one process a node, which has all its GPUs and as many cores as --cpus-per-task says,
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config=FILE --workdir=SHARED_DIR ...
# or one process a GPU, where a single Python cannot feed them:
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=8 launch/slurm.sh ...
# JAX finds coordinator and ranks from Slurm. Two minutes before the time limit the run is saved and
# the job queued again, as it is after a lost node (Slurm) or process (at most 10 times): it resumes.
# A mistake (exit code 2), numbers that are not finite (1), scancel and the end of the run end it.
#SBATCH --job-name=jaxcls
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail
limit=
trap 'limit=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
# The processes end each other, with one line. srun does not pass on the cores by itself.
srun --kill-on-bad-exit=0 --wait=120 ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} \
    python3 -m jaxcls.main --distributed "$@" &
code=0
wait $! || code=$?
if [ "$limit" ]; then # the signal has ended the first `wait`
    code=0
    wait $! || code=$?
fi
again=
case $code in
0 | 1 | 2 | 129 | 130) ;;
143) again=$limit ;;
*) if [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then again=1; fi ;;
esac
if [ "$again" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
