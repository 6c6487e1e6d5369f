#!/bin/sh
# A SLURM of one node on this machine, for tests: sh tests/slurm/start.sh [stop]
# Needs root and Debian's packages: apt-get install slurm-wlm munge
set -eu
here=$(cd "$(dirname "$0")" && pwd)
state=/var/tmp/ivosbench-slurm

runs() {
    grep -qs '^State:[[:space:]]*[^Z[:space:]]' "/proc/$1/status"
}

stop() {
    for file in "$state/slurmctld.pid" "$state/slurmd.pid"; do
        [ -f "$file" ] || continue
        pid=$(cat "$file")
        kill "$pid" 2>/dev/null || true
        while runs "$pid"; do sleep 0.2; done
        rm -f "$file"
    done
}

stop
[ "${1:-}" = stop ] && exit

rm -rf "$state"
mkdir -p "$state" /run/munge
chown munge /run/munge
munge -n >/dev/null 2>&1 || runuser -u munge -- munged

cat >"$state/slurm.conf" <<CONF
ClusterName=ivosbench
SlurmctldHost=$(hostname)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$state
SlurmdSpoolDir=$state
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=2
ReturnToService=2
NodeName=$(hostname) CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$state/slurm.conf"
slurmctld -c
slurmd
for _ in $(seq 60); do
    if sinfo --noheader --format=%t 2>/dev/null | grep -q idle; then
        echo "export SLURM_CONF=$SLURM_CONF PATH=$here/bin:\$PATH"
        exit
    fi
    sleep 1
done
echo "$state/slurmctld.log, $state/slurmd.log: no idle node after a minute" >&2
exit 1
