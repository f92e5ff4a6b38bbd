#!/bin/bash
# sbatch howto/slurm.sh COMMAND...: `accelerate launch COMMAND` on all GPUs of the allocation, back into the queue when preempted. See slurm.md.
#SBATCH --job-name=sadm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=_runs/slurm-%j.log
#SBATCH --signal=B:TERM@120
set -u
[ $# -gt 0 ] || { echo "usage: sbatch howto/slurm.sh COMMAND..., e.g. -m sadm.experiments --table table5 --row sat --column cifar10" >&2; exit 2; }
launch=${SADM_LAUNCH:-.venv/bin/accelerate}
nodes=${SLURM_NNODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-1}
first=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" | head -n 1)
port=$((20000 + ${SLURM_JOB_ID:-0} % 20000))

# One launcher for each node; SLURM_NODEID is known inside of srun only, hence the inner shell.
srun --kill-on-bad-exit=1 bash -c 'exec "$0" launch --num_machines "$1" --num_processes "$2" --machine_rank "${SLURM_NODEID:-0}" --main_process_ip "$3" --main_process_port "$4" --mixed_precision "${SADM_PRECISION:-no}" --dynamo_backend no $([ "$2" -gt 1 ] && echo --multi_gpu) "${@:5}"' \
    "$launch" "$nodes" $((nodes * gpus)) "$first" "$port" "$@" &
job=$!

preempted=
trap 'preempted=1; kill -TERM "$job" 2>/dev/null' TERM
wait "$job"; status=$?
while kill -0 "$job" 2>/dev/null; do wait "$job"; status=$?; done  # a trap ends the first wait before the job has ended
if [ -n "$preempted" ]; then
    echo "preempted: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
