#!/usr/bin/env bash
# Train cold diffusion: sbatch [options of sbatch] slurm/train_cold.sh PRESET row|col [options of diffuse.train]
#
#   sbatch slurm/train_cold.sh default_28 row --epochs 80
#   sbatch --array=0-4 slurm/train_cold.sh default_7 col          seeds 0 to 4
#SBATCH --job-name=diffuse-cold
#SBATCH --nodes=1
#SBATCH --propagate=NONE
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=4
#SBATCH --signal=USR2@90
#SBATCH --requeue
#SBATCH --open-mode=append
# Slurm runs a copy of this file from its spool folder; scontrol tells the path of the original.
here=$(scontrol show job "${SLURM_JOB_ID:?submit it with sbatch}" | sed -n '/^ *Command=/{s|.*=\(.*/slurm\)/train_cold.sh.*|\1|p;q}')
# shellcheck source=slurm/common.sh
. "$here/common.sh" || exit 1

case ${2:-} in
  row | col) ;;
  *) fail 2 "slurm/train_cold.sh PRESET row|col [options of diffuse.train], not: $*" ;;
esac
preset=$1 orientation=$2
shift 2
train --preset "cold/${preset#cold/}" --orientation "$orientation" "$@"
