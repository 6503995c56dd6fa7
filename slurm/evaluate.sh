#!/usr/bin/env bash
# FID, KID and IS of a run: sbatch [options of sbatch] slurm/evaluate.sh RUN [options of diffuse.evaluate]
#
#   sbatch slurm/evaluate.sh runs/ddpm-default-1a2b3c4d -n 10000
#   sbatch --gpus-per-node=4 slurm/evaluate.sh runs/ddpm-default-1a2b3c4d --epoch 80
#SBATCH --job-name=diffuse-evaluate
#SBATCH --nodes=1
#SBATCH --propagate=NONE
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=4
#SBATCH --signal=USR2@90
#SBATCH --requeue
#SBATCH --open-mode=append
# Slurm runs a copy of this file from its spool folder; scontrol tells the path of the original.
here=$(scontrol show job "${SLURM_JOB_ID:?submit it with sbatch}" | sed -n '/^ *Command=/{s|.*=\(.*/slurm\)/evaluate.sh.*|\1|p;q}')
# shellcheck source=slurm/common.sh
. "$here/common.sh" || exit 1

case ${1:--} in
  -*) fail 2 "slurm/evaluate.sh RUN [options of diffuse.evaluate], not: $*" ;;
esac
set -- "$(expanded "$1")" --device "$device" "${@:2}"
[ -d "$1" ] || fail 2 "$1: no run directory (see runs/)"
find_python "$@"
work "$1" evaluate "$@"
