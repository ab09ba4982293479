#!/usr/bin/env bash
# Slurm: sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config=FILE --workdir=SHARED_DIR ...
# One task per GPU; JAX finds coordinator and ranks from Slurm. Requeued jobs resume by themselves.
#SBATCH --job-name=jaxcls
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail
exec srun --kill-on-bad-exit=1 python3 -m jaxcls.main --distributed "$@"
