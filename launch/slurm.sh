#!/usr/bin/env bash
# Search on Slurm, from the folder of the project with its .venv, on a disk that all nodes share:
#
#   sbatch launch/slurm.sh SPACE_FILE STUDY [options of csg-ray search]
#
# STUDY is a folder on the shared disk or a URI. Preempted or out of time, the job goes back into the
# queue and then on with the study; the same command by hand does so too.
#SBATCH --job-name=csg-ray
#SBATCH --nodes=2                  # CHANGE: machines
#SBATCH --gpus-per-node=4          # CHANGE: what one machine has
#SBATCH --cpus-per-task=32         # CHANGE: what one machine has
#SBATCH --time=24:00:00            # CHANGE: the limit of your partition; the study may take longer
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive                # a second Ray on a node would be taken for this one
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180        # seconds before the limit, to this script only
set -euo pipefail

if (($# < 2)); then
  echo "usage: sbatch launch/slurm.sh SPACE_FILE STUDY [options of csg-ray search]" >&2
  exit 2
fi
space_file=$1 study=$2
shift 2

export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
ray get-auth-token --generate >/dev/null # into ~/.ray, which the nodes share
head=$(hostname -I | cut -d ' ' -f 1):6379 # this script runs on the first node

requeue() {
  trap '' USR1
  kill -TERM "$step"
  wait "$step" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap requeue USR1

# In the background, since bash runs a trap only between commands, or while it waits.
srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit \
  ray symmetric-run --address "$head" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" -- \
  env RAY_ADDRESS="$head" csg-ray search "$space_file" --study "$study" --resume "$@" &
step=$!
wait "$step"
