#!/bin/bash
# A Slurm pod of GPUs: sbatch launch/clusters/slurm.sh --config=configs/rcg/moco_v3.py:variant=base \
#     --config.data.path=/shared/photos --workdir=/shared/runs/encoder
#
# One process a GPU; they find each other through what Slurm puts into their environment.
#SBATCH --job-name=train
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# SIGTERM two minutes before the end: all processes save the same step and stop
#SBATCH --signal=TERM@120
# and after a node's failure or a preemption the same command goes on from the newest checkpoint
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
source .venv/bin/activate # pip install -e '.[gpu]'

# --kill-on-bad-exit: one process that is gone ends all, so that Slurm can start them again
srun --kill-on-bad-exit=1 python -m launch.train "$@"
