#!/usr/bin/env bash
# FID, KID and IS of a model: sbatch [options of sbatch] slurm/evaluate.sh MODEL [options of diffuse.evaluate]
#
#   sbatch slurm/evaluate.sh runs/ddpm-default-1a2b3c4d -n 10000
#   sbatch --gpus-per-node=4 slurm/evaluate.sh runs/ddpm-default-1a2b3c4d --epoch 80
#   sbatch slurm/evaluate.sh ddpm_mnist_80_default.pth -n 1000 --output results    log in results/logs
#   sbatch slurm/evaluate.sh cold/unet-row                                         shipped weights
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
  -*) fail 2 "slurm/evaluate.sh MODEL [options of diffuse.evaluate], not: $*" ;;
esac
set -- "$(expanded "$1")" --device "$device" "${@:2}"
if [ -d "$1" ]; then
  place=$1
elif [ -f "${1%/checkpoints/*}/config.yaml" ] && [ -f "$1" ]; then # a checkpoint in its run
  place=${1%/checkpoints/*}
elif [ -f "$1" ] || [ -f "$ROOT/diffuse/weights/${1/\//-}.safetensors" ]; then
  place=. # unless --output names another
  for ((k = 2; k <= $#; k++)); do
    case ${!k} in
      --output) next=$((k + 1)) && place=${!next:-.} ;;
      --output=*) place=${!k#*=} ;;
    esac
  done
  place=$(expanded "$place")
else
  fail 2 "$1: no run directory (see runs/), weight file or shipped model"
fi
find_python "$@"
work "$place" evaluate "$@"
