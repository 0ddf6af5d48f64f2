#!/bin/bash
#SBATCH --job-name=plumbline-nightly
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=10:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/srv/plumbline/slurm-%j.out
#SBATCH --signal=B:TERM@300

# A night that reaches its time limit, or loses its node, goes back into the queue and goes on with the cases that are
# left. The next night is submitted first, so that a broken one does not end them all.
config=/srv/plumbline/nightly.toml
again=${SLURM_RESTART_COUNT:-0}
resume=
if [ "$again" -gt 0 ]; then
  resume=--resume
else
  sbatch --quiet --begin="$(date -d 'tomorrow 01:15' +%Y-%m-%dT%H:%M:%S)" "$0" || echo "the next night was not submitted" >&2
fi

trap 'kill -TERM "$night"' TERM
/srv/plumbline/venv/bin/plumbline nightly "$config" $resume &
night=$!
wait "$night"
code=$?
if [ "$code" -gt 128 ]; then # perhaps the trap ended the first wait, and not the night; 127: the night
  wait "$night"
  ended=$?
  [ "$ended" -eq 127 ] || code=$ended
fi
if [ "$code" -eq 2 ] && [ "$again" -lt 3 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
