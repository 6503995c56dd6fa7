#!/usr/bin/env bash
# Stage MNIST: bash slurm/prepare.sh [options of diffuse.prepare], on a node with internet.
#
# Login nodes have it; where a partition does, too: sbatch -p transfer slurm/prepare.sh
#SBATCH --job-name=diffuse-prepare
#SBATCH --nodes=1
#SBATCH --propagate=NONE
#SBATCH --ntasks=1
here=$(dirname "$0")
if [ -n "${SLURM_JOB_ID:-}" ]; then # a copy in Slurm's spool folder; scontrol tells the original
  here=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s|.*=\(.*/slurm\)/prepare.sh.*|\1|p;q}')
fi
# shellcheck source=slurm/common.sh
. "$here/common.sh" || exit 1

find_python "$@"
exec "${python[@]}" -m diffuse.prepare "$@"
