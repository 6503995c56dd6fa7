# shellcheck shell=bash
# Shared by the batch scripts in this folder: python in or out of the image, one rank per GPU
# through srun, the log in the run directory, and the requeue of an interrupted job.
#
#   DIFFUSE_IMAGE   an Apptainer image; without it python is that of the active environment or .venv
#   DIFFUSE_BINDS   more folders for the image, with commas between
#   DIFFUSE_DATA    where mnist.h5 is (default: ./data)
set -uo pipefail

log= # of the program, once its run is known: this script's errors go there, too

fail() { # fail CODE MESSAGE
  echo "error: $2" >&2
  [ -z "$log" ] || { echo "error: $2" >>"$log" && record "$1"; }
  exit "$1"
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
case $ROOT in *:*) fail 2 "$ROOT: Python's search path takes no folder with a colon; rename it" ;; esac
expanded() { # expanded PATH: with the home for a ~ or ~user in front, which the shell leaves after =
  local user=${1%%/*} home=
  case $user in
    \~*) [[ $user =~ ^~([A-Za-z_][A-Za-z0-9._-]*)?$ ]] && eval "home=$user" && set -- "$home${1#"$user"}" ;;
  esac
  printf '%s' "$1"
}
for name in DIFFUSE_IMAGE DIFFUSE_DATA; do
  [ -z "${!name:-}" ] || export "$name=$(expanded "${!name}")"
done
if [ -z "${DIFFUSE_IMAGE:-}" ]; then # behind this code stays what a module put on the path, torch perhaps
  PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
else # which has packages of its own
  PYTHONPATH=$ROOT
fi
export PYTHONPATH PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export SLURM_EXPORT_ENV=ALL # after sbatch --export=NONE srun would take no variables along

# ---- one rank per GPU and four cores each (the headers' --cpus-per-gpu); without GPUs one per node
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT # of the shell that submitted this
ranks=${SLURM_GPUS_ON_NODE:-0}
device=auto
if [ "$ranks" -eq 0 ]; then
  unset SLURM_GPUS_PER_NODE SLURM_CPUS_PER_GPU
  ranks=1
else
  device=cuda # no training on the CPU of a node whose GPU does not work
  export SLURM_GPUS_PER_NODE=$ranks # after --gres=gpu:2 still the header's 1, which srun would take
fi
export OMP_NUM_THREADS=${SLURM_CPUS_PER_GPU:-${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}}
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it from sbatch any more
fi

# ---- the job's name in logs: 12-r00, 12_3-r01 (the first requeue of an array's task)
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-${SLURM_JOB_ID:-}}
attempt=${SLURM_RESTART_COUNT:-0}
MAX_STARTS=4 # in a row from one and the same checkpoint

folders_named() { # folders of the files and folders in the arguments: the image must see them
  local word before=
  for word in "$@"; do
    case $before in --runs-dir | --data-dir | --output) mkdir -p "$(expanded "$word")" ;; esac
    case $word in --runs-dir=* | --data-dir=* | --output=*) mkdir -p "$(expanded "${word#*=}")" ;; esac
    before=$word
    case $word in --*=*) word=${word#*=} ;; esac
    word=$(expanded "$word")
    if [ -d "$word" ]; then
      realpath "$word"
    elif [ -f "$word" ]; then
      realpath "$(dirname "$word")"
    fi
  done
}

bind() { # bind FOLDER: the image sees it
  case $1 in *[:,\"]*) fail 2 "$1: Apptainer's --bind takes no path with a colon, a comma or a quotation mark" ;; esac
  python+=(--bind "$1")
}

find_python() { # find_python ARGUMENTS: sets the array `python`
  if [ -z "${DIFFUSE_IMAGE:-}" ]; then
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$ROOT/.venv/bin/python" ]; then
      python=("$ROOT/.venv/bin/python")
    else
      python=(python)
    fi
    return
  fi
  local apptainer folder
  apptainer=$(command -v apptainer || command -v singularity) ||
    fail 1 "no apptainer on $(hostname); load its module before sbatch"
  [ -f "$DIFFUSE_IMAGE" ] || fail 2 "DIFFUSE_IMAGE: $DIFFUSE_IMAGE is not there; build it by: make image"
  DIFFUSE_IMAGE=$(realpath "$DIFFUSE_IMAGE")
  DIFFUSE_IMAGE_SHA256=$(image_sha256)
  export DIFFUSE_IMAGE DIFFUSE_IMAGE_SHA256
  python=("$apptainer" exec)
  bind "$ROOT"
  bind "$PWD"
  while IFS= read -r folder; do
    bind "$folder"
  done < <(folders_named "$@" | sort -u)
  [ -z "${DIFFUSE_DATA:-}" ] || bind "$(realpath "$DIFFUSE_DATA")"
  [ -z "${DIFFUSE_BINDS:-}" ] || python+=(--bind "$DIFFUSE_BINDS")
  [ "${SLURM_GPUS_PER_NODE:-0}" = 0 ] || python+=(--nv)
  python+=("$DIFFUSE_IMAGE" python)
}

image_sha256() { # kept in IMAGE.sha256, since reading gigabytes takes a while
  local known=$DIFFUSE_IMAGE.sha256 line stamp
  stamp=$(stat -c '# %s %.9Y' "$DIFFUSE_IMAGE" | tr -d .) || return # its size and time in ns
  if [ "$(sed -n 2p "$known" 2>/dev/null)" = "$stamp" ]; then
    line=$(head -n 1 "$known")
  else
    line=$(sha256sum <"$DIFFUSE_IMAGE") || return
    line="${line%% *}  $(basename "$DIFFUSE_IMAGE")"
    { printf '%s\n' "$line" "$stamp" >"$known.$$" && mv "$known.$$" "$known"; } 2>/dev/null
  fi
  echo "${line%% *}"
}

train() { # train ARGUMENTS OF diffuse.train; in an array the task's number is the seed
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- --set "seed=$SLURM_ARRAY_TASK_ID" "$@"
  set -- --set "system.device=$device" "$@"
  find_python "$@"
  local run
  run=$("${python[@]}" -m diffuse.train --where "$@") || exit # diffuse.train has printed the error
  work "$run" train "$@"
}

work() { # work RUN PROGRAM ARGUMENTS: diffuse.PROGRAM on all ranks, its output in RUN/logs
  local run=$1 code
  program=$2
  shift 2
  mkdir -p "$run/logs" || fail 1 "$run: cannot be written"
  log=$run/logs/$program-$job-r$(printf %02d "$attempt").log
  started=$(date -u +%FT%TZ)
  record
  require_progress "$run"
  echo "$started $job on ${SLURM_JOB_NODELIST:-?}, $((ranks * SLURM_NNODES)) ranks: $log"
  # A preempting SIGTERM is for the ranks. Neither signal must end a Python that is still starting.
  # Rank 0 marks an interruption by a file: once one rank has ended, srun kills the others and then
  # reports their signal instead of exit code 75.
  trap : TERM
  export DIFFUSE_INTERRUPTED=$run/logs/interrupted-$job-r$attempt
  # shellcheck disable=SC2016 # for the shell of each rank
  srun --kill-on-bad-exit=1 --ntasks-per-node="$ranks" --ntasks=$((ranks * SLURM_NNODES)) \
    bash -c 'trap "" USR2 TERM
      "$@"
      code=$?
      [ "$code-$SLURM_PROCID" != 75-0 ] || touch "$DIFFUSE_INTERRUPTED"
      exit $code' "diffuse-$program" "${python[@]}" -m "diffuse.$program" "$@" >>"$log" 2>&1
  code=$?
  rm "$DIFFUSE_INTERRUPTED" 2>/dev/null && code=75
  record $code
  tail -n 1 "$log"
  [ $code -ne 75 ] || requeue
  exit $code
}

record() { # record [CODE]: beside the log, the program's start and end, as the launcher's jobs write it
  local file=${log%.log}.json end=
  # a signal's number counts as negative
  [ $# -eq 0 ] || end=", \"ended\": \"$(date -u +%FT%TZ)\", \"code\": $(($1 > 128 ? 128 - $1 : $1))"
  printf '{"program": "diffuse.%s", "started": "%s"%s}\n' "$program" "$started" "$end" >"$file.$$" &&
    mv "$file.$$" "$file"
}

require_progress() { # RUN: ends a job that is requeued again and again without a new file
  local starts=$1/logs/$program-$job.starts found=("$1/checkpoints" -type f) product=checkpoint newest
  if [ "$program" = evaluate ]; then # parts of a set of images, whole sets, figures
    found=("$1" -maxdepth 3 -type f '(' -name '*.npz' -o -name '*.h5' -o -path '*/evaluations/*' ')')
    product=image
  fi
  newest=$(find "${found[@]}" ! -name '.*' -printf '%T@ %p\n' 2>/dev/null | sort -n | tail -n 1)
  echo "${newest:-none}" >>"$starts"
  if [ "$(tail -n $MAX_STARTS "$starts" | grep -cxF "${newest:-none}")" -eq $MAX_STARTS ] &&
    [ "$attempt" -ge $((MAX_STARTS - 1)) ]; then
    fail 1 "$1: $MAX_STARTS starts in a row without a new $product; is --time too short?"
  fi
}

requeue() { # this task alone, from the host (no image has scontrol); resumes from its checkpoint
  # An orphan on a dead node must not requeue the newer attempt, which has the same job id.
  if scontrol show job "$job" --oneliner | grep -q "JobState=RUNNING .* Restarts=$attempt "; then
    scontrol requeue "$job" || fail 75 "Slurm did not requeue $job; submit it again to go on"
    sleep 60 # Slurm ends this script
  fi
}
