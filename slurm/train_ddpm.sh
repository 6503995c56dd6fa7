#!/usr/bin/env bash
# Train a DDPM: sbatch [options of sbatch] slurm/train_ddpm.sh [PRESET] [options of diffuse.train]
#
#   sbatch slurm/train_ddpm.sh default --epochs 100
#   sbatch -N 2 --gpus-per-node=4 slurm/train_ddpm.sh unet        8 ranks
#   sbatch --array=0-4 slurm/train_ddpm.sh default                seeds 0 to 4
#   sbatch --time=30 --partition=gpu ...                          saved and requeued at the limit
#SBATCH --job-name=diffuse-ddpm
#SBATCH --nodes=1
#SBATCH --propagate=NONE
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=4
#SBATCH --signal=USR2@90
#SBATCH --requeue
#SBATCH --open-mode=append
# Slurm runs a copy of this file from its spool folder; scontrol tells the path of the original.
here=$(scontrol show job "${SLURM_JOB_ID:?submit it with sbatch}" | sed -n '/^ *Command=/{s|.*=\(.*/slurm\)/train_ddpm.sh.*|\1|p;q}')
# shellcheck source=slurm/common.sh
. "$here/common.sh" || exit 1

preset=default
case ${1:--} in
  -*) ;;
  *) preset=$1 && shift ;;
esac
train --preset "ddpm/${preset#ddpm/}" "$@"
