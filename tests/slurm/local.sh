#!/bin/sh
# One machine as a SLURM cluster: munged, slurmctld and slurmd, started by hand, as root. No systemd,
# no accounting database, no file outside the folder. Debian and Ubuntu have the packages:
#   apt-get install --no-install-recommends munge slurmctld slurmd slurm-client
#
#   eval "$(tests/slurm/local.sh up FOLDER)"     starts it, and sets SLURM_CONF and PATH
#   radgen paper --profile smoke --executor slurm
#   tests/slurm/local.sh down FOLDER             stops it
#
# FOLDER is short: the path of a socket has room for 100 characters. RADGEN_SLURM_CORES and
# RADGEN_SLURM_MB say what the node has to give; without them all cores, and the memory less 1,000 MB.
set -eu

fail() { echo "local.sh: $*" >&2; exit 2; }
[ $# = 2 ] || fail "usage: local.sh up|down FOLDER"
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$2"
dir=$(cd "$2" && pwd)
conf=$dir/slurm.conf

stop() {
    for name in slurmd slurmctld munged; do
        pid=$(cat "$dir/$name.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || true
        for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 0.5; done
        rm -f "$dir/$name.pid"
    done
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

write_conf() {
    node=$(hostname -s)
    cores=${RADGEN_SLURM_CORES:-$(nproc)}
    total=$(awk '/MemTotal/ { print int($2 / 1024) - 1000 }' /proc/meminfo)
    cat > "$conf" <<CONF
ClusterName=local
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
# Without cgroups: the processes of a job are found as descendants, and nothing is bound to cores.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
# Without a database, squeue knows a finished job for MinJobAge seconds.
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=900
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5
# Cores and memory are what jobs share; a job that asks for more than is left waits.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
KillWait=10
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cores RealMemory=${RADGEN_SLURM_MB:-$total} State=UNKNOWN
PartitionName=local Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
}

# Snakemake drops SLURM_CONF before it starts a step in a job; this srun sets it again.
write_srun() {
    mkdir -p "$dir/bin"
    printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$conf" "$(command -v srun)" > "$dir/bin/srun"
    chmod +x "$dir/bin/srun"
}

ready() {
    echo "export SLURM_CONF='$conf'"
    echo "export PATH='$dir/bin':\"\$PATH\""
}

up() {
    [ "$(id -u)" = 0 ] || fail "the daemons of a cluster are started as root"
    for name in munged slurmctld slurmd sbatch; do
        command -v $name >/dev/null || fail "no $name; apt-get install munge slurmctld slurmd slurm-client"
    done
    stop
    umask 022
    mkdir -p "$dir/state" "$dir/spool"
    [ -e "$dir/munge.key" ] || (umask 077; head -c 1024 /dev/urandom > "$dir/munge.key")
    write_conf
    write_srun
    export SLURM_CONF="$conf"
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
        --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" \
        2>"$dir/munged.err"
    slurmctld -c 2>"$dir/slurmctld.err" || fail "slurmctld: see $dir/slurmctld.log"
    slurmd -c 2>"$dir/slurmd.err" || fail "slurmd: see $dir/slurmd.log"
    for _ in $(seq 60); do
        case $(sinfo -h -o %T 2>/dev/null) in idle | mixed | allocated) ready; return ;; esac
        sleep 0.5
    done
    fail "the node did not come up: see $dir/slurmctld.log and $dir/slurmd.log"
}

case $1 in
    up) up ;;
    down) stop ;;
    *) fail "usage: local.sh up|down FOLDER" ;;
esac
