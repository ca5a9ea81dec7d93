#!/bin/bash
# Trains in processes that torchrun and Slurm's srun themselves start.
#
#   benches/reliability/launchers.sh        QLORA_TRAIN names a trainer that is built already
#
# torchrun comes with PyTorch, which pip puts into target/tools/torch (5 GB). Slurm comes out of Debian's packages,
# which are unpacked into target/tools/slurm and not installed: a controller and a node of this machine, as this user,
# for as long as this runs. What cannot be had is said, and left out. For each launcher:
#
# same       2 and 4 processes: the adapter is, to the byte, that of processes that were given the variables by hand,
#            and of one process where each has one micro-batch of a step; doctor says who started it
# killed     a process is killed: the launcher ends in time, the others name the process, and the run goes on to the
#            bytes of one that was never killed
# ended      the launcher's own way to end a run: rank 0 saves, and the run goes on to the same bytes
# restarted  (torchrun) a process is killed, all are started again by torchrun, and go on by themselves
# agents     (torchrun) two of it, as on two machines
# batch      (srun) a script of sbatch: alone without srun, 2 processes with it
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
root=$PWD record=$PWD/benches/reliability/record.md model=$PWD/tests/golden/qwen3
tools=${QLORA_TOOLS:-$root/target/tools}
work=$(mktemp -d)
servers=()
finish() {
    local pid
    # Launchers end their processes while Slurm's servers, which srun asks for that, are there.
    for pid in $(jobs -p); do
        case " ${servers[*]:-} " in *" $pid "*) continue ;; esac
        kill "$pid" 2> /dev/null
        ended "$pid" 60 || kill -KILL "$pid" 2> /dev/null
    done
    [ ${#servers[@]} -gt 0 ] && kill "${servers[@]}" 2> /dev/null && wait "${servers[@]}" 2> /dev/null
    rm -rf "$work"
}
trap finish EXIT
begun=$SECONDS

failed() {
    echo "failed: $1"
    tail -n 5 "$work"/*.log
    exit 1
}

trainer=${QLORA_TRAIN:-}
if [ -z "$trainer" ]; then
    cargo build --release --locked --quiet -p qlora-train || failed "the build"
    trainer=$root/target/release/qlora-train
fi
mkdir -p "$tools"
if [ ! -x "$tools/torch/bin/torchrun" ]; then
    python3 -m venv "$tools/torch" && "$tools/torch/bin/pip" install --quiet --no-input torch \
        || echo "no PyTorch: torchrun is left out"
fi
if [ ! -x "$tools/slurm/usr/bin/srun" ]; then
    mkdir -p "$tools/slurm/packages/partial"
    apt-get install --yes --quiet --quiet --download-only --no-install-recommends -o Debug::NoLocking=1 \
        -o Dir::Cache::archives="$tools/slurm/packages" slurmctld slurmd slurm-client > "$work/apt.log" 2>&1
    for package in "$tools/slurm/packages"/*.deb; do
        dpkg-deb -x "$package" "$tools/slurm" || echo "no Slurm: srun is left out"
    done
fi

cd "$work" || exit 1
for row in $(seq 24); do
    length=$((8 + row % 9))
    ids=$(seq -s, $((row % 7 + 3)) $((row % 7 + 3 + length)))
    echo "{\"input_ids\": [$ids], \"labels\": [$ids]}"
done > rows.jsonl

# set_line OUT EACH STEPS: sets `line` to a run of STEPS steps into OUT, with EACH micro-batches on each process.
set_line() {
    line=("$trainer" train --model "$model" --data "$work/rows.jsonl" --output-dir "$work/$1" --max-length 64
        --lora-r 4 --allow all --packing false --lora-dropout 0.1 --save-steps 5 --gradient-accumulation-steps "$2"
        --max-steps "$3" --threads 1 --compute f32 --logging-steps 1 --resume-from-checkpoint)
}
# by_hand PROCESSES OUT EACH STEPS: the run in processes whose variables are set here.
by_hand() {
    local rank pids=()
    set_line "$2" "$3" "$4"
    for ((rank = 0; rank < $1; rank++)); do
        RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29541 \
            "${line[@]}" > "$2-$rank.log" 2>&1 &
        pids+=($!)
    done
    for rank in "${pids[@]}"; do
        wait "$rank" || failed "$2: a process of $1"
    done
}
adapter() { echo "$work/$1/adapter_model.safetensors"; }
same() { cmp "$(adapter "$1")" "$(adapter "$2")" || failed "other bytes: $1, $2"; }

# ended PID SECONDS: whether a process ends in time.
ended() {
    local left=$(($2 * 20))
    while kill -0 "$1" 2> /dev/null; do
        [ $((left -= 1)) -gt 0 ] || return 1
        sleep 0.05
    done
}
# of_rank RANK: waits until the run into `out` has a checkpoint; prints that rank's process.
of_rank() {
    local file tries=1200
    while [ $((tries -= 1)) -gt 0 ]; do
        # Slurm's processes are below none of those that are known here.
        for file in $(grep -lzx -- "$work/$out" /proc/[0-9]*/cmdline 2> /dev/null); do
            grep -qzxE "(RANK|SLURM_PROCID)=$1" "${file%cmdline}environ" 2> /dev/null || continue
            [ -d "$out/checkpoint-10" ] && basename "${file%/cmdline}" && return 0
        done
        sleep 0.02
    done
    return 1
}

LONG=800 # steps of the runs that are ended on the way
set_line alone 4 60
"${line[@]}" > alone.log 2>&1 || failed alone
by_hand 2 hand-2 2 60
by_hand 4 hand-4 1 60
by_hand 2 whole 2 $LONG
same hand-4 alone

# compare NAME: the adapters of a launcher in 2 and 4 processes.
compare() {
    same "$1-2" hand-2
    same "$1-4" hand-4
}
# doctor_says NAME COMMAND…: doctor, started so, names the launcher.
doctor_says() {
    local name=$1
    shift
    "$@" "$trainer" doctor --json > doctor.json 2> doctor.log || failed "doctor under $name"
    python3 -c 'import json, sys
found = json.load(open("doctor.json"))["processes"]
assert found["launcher"] == sys.argv[1] and found["world_size"] == 2, found' "$name" || failed "doctor under $name"
}

told=()
if [ -x "$tools/torch/bin/torchrun" ]; then
    run=("$tools/torch/bin/torchrun" --no-python)
    of_two=("${run[@]}" --standalone --nproc-per-node 2)
    version=$("$tools/torch/bin/python" -c 'import torch; print(torch.__version__)' 2> /dev/null)
    for processes in 2 4; do
        set_line torchrun-$processes $((4 / processes)) 60
        "${run[@]}" --standalone --nproc-per-node $processes "${line[@]}" > torchrun-$processes.log 2>&1 \
            || failed "torchrun, $processes processes"
        grep -q "$processes processes (started by torchrun)" torchrun-$processes.log || failed "who started it"
    done
    compare torchrun
    doctor_says torchrun "${of_two[@]}"

    set_line agents 1 60
    agents=()
    for node in 0 1; do
        "${run[@]}" --nnodes 2 --node-rank $node --nproc-per-node 2 --master-addr 127.0.0.1 --master-port 29551 \
            "${line[@]}" > agents-$node.log 2>&1 &
        agents+=($!)
    done
    for pid in "${agents[@]}"; do
        wait "$pid" || failed "torchrun in two agents"
    done
    same agents hand-4

    out=torchrun-killed
    set_line $out 2 $LONG
    "${of_two[@]}" --max-restarts 0 "${line[@]}" > $out.log 2>&1 &
    launcher=$!
    pid=$(of_rank 1) || failed "$out: it ended before a process was killed"
    from=$(date +%s.%N)
    kill -KILL "$pid"
    ended $launcher 60 || failed "torchrun goes on after a process was killed"
    wait $launcher && failed "a run of which a process was killed is no success"
    killed=$(awk -v from="$from" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f", to - from }')
    grep -q "rank 1 (.*process $pid) is gone" $out.log || failed "torchrun: nobody names the process that was killed"
    [ -f "$(adapter $out)" ] && failed "$out: it was at its end when a process was killed"
    "${of_two[@]}" "${line[@]}" > $out-on.log 2>&1 || failed "$out does not go on"
    grep -q "resuming after step" $out-on.log || failed "$out began anew"
    same $out whole

    out=torchrun-ended
    set_line $out 2 $LONG
    "${of_two[@]}" "${line[@]}" > $out.log 2>&1 &
    launcher=$!
    pid=$(of_rank 0) || failed "$out: it ended before it was told to"
    kill -TERM $launcher
    ended $launcher 60 || failed "torchrun does not end by SIGTERM"
    wait $launcher && failed "a run that was ended is no success"
    grep -q "checkpoint" $out.log || failed "$out: rank 0 saved nothing"
    "${of_two[@]}" "${line[@]}" > $out-on.log 2>&1 || failed "$out does not go on"
    same $out whole

    out=torchrun-restarted
    set_line $out 2 $LONG
    "${of_two[@]}" --max-restarts 2 "${line[@]}" > $out.log 2>&1 &
    launcher=$!
    for rank in 1 0; do
        # The second one once all go on after the first.
        until [ "$(grep -c "resuming after step" $out.log)" = $((1 - rank)) ] || ! kill -0 $launcher 2> /dev/null; do
            sleep 0.02
        done
        pid=$(of_rank $rank) || failed "$out: it ended before a process was killed"
        kill -KILL "$pid"
        ended "$pid" 30
    done
    wait $launcher || failed "torchrun did not start the processes again"
    [ "$(grep -c "resuming after step" $out.log)" = 2 ] || failed "$out: it did not go on twice"
    same $out whole
    told+=("torchrun of PyTorch $version: 2 and 4 processes and two agents of 2 to the bytes of processes started by \
hand; ended $killed s after a process was killed, by its name; killed, ended and twice started again by torchrun it goes \
on to the same bytes")
    echo "${told[-1]}"
fi

if [ -x "$tools/slurm/usr/bin/srun" ]; then
    slurm=$tools/slurm libraries=$tools/slurm/usr/lib/$(uname -m)-linux-gnu node=$(hostname -s)
    mkdir -p slurm/state slurm/spool
    cat > slurm/slurm.conf <<END
ClusterName=here
SlurmctldHost=$node(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/none
CredType=cred/none
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation=$work/slurm/state
SlurmdSpoolDir=$work/slurm/spool
SlurmctldPidFile=$work/slurm/slurmctld.pid
SlurmdPidFile=$work/slurm/slurmd.pid
SlurmctldLogFile=$work/slurm/slurmctld.out
SlurmdLogFile=$work/slurm/slurmd.out
PluginDir=$libraries/slurm-wlm
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:4
END
    export SLURM_CONF=$work/slurm/slurm.conf LD_LIBRARY_PATH=$libraries:$libraries/slurm-wlm
    PATH=$slurm/usr/bin:$PATH
    "$slurm"/usr/sbin/slurmctld* -D -c -f "$SLURM_CONF" > slurmctld.log 2>&1 &
    servers+=($!)
    "$slurm"/usr/sbin/slurmd* -D -d "$slurm"/usr/sbin/slurmstepd* -f "$SLURM_CONF" > slurmd.log 2>&1 &
    servers+=($!)
    tries=100
    until sinfo -h -o %T 2> /dev/null | grep -q idle; do
        [ $((tries -= 1)) -gt 0 ] || failed "Slurm does not start"
        sleep 0.1
    done
    version=$(srun --version | cut -d' ' -f2)
    of_two=(srun -n 2 --overcommit)
    for processes in 2 4; do
        set_line srun-$processes $((4 / processes)) 60
        srun -n $processes --overcommit "${line[@]}" > srun-$processes.log 2>&1 || failed "srun, $processes processes"
        grep -q "$processes processes (started by SLURM)" srun-$processes.log || failed "who started it"
    done
    compare srun
    doctor_says SLURM "${of_two[@]}"
    set_line srun-address 2 60
    "${of_two[@]}" bash -c 'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) exec "$@"' - \
        "${line[@]}" > srun-address.log 2>&1 || failed "srun with an address"
    same srun-address hand-2

    out=srun-killed
    set_line $out 2 $LONG
    "${of_two[@]}" "${line[@]}" > $out.log 2>&1 &
    launcher=$!
    pid=$(of_rank 1) || failed "$out: it ended before a process was killed"
    from=$(date +%s.%N)
    kill -KILL "$pid"
    ended $launcher 60 || failed "srun goes on after a process was killed"
    wait $launcher && failed "a run of which a process was killed is no success"
    killed=$(awk -v from="$from" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f", to - from }')
    grep -q "rank 1 (.*process $pid) is gone" $out.log || failed "srun: nobody names the process that was killed"
    "${of_two[@]}" "${line[@]}" > $out-on.log 2>&1 || failed "$out does not go on"
    grep -q "resuming after step" $out-on.log || failed "$out began anew"
    same $out whole

    out=srun-ended
    set_line $out 2 $LONG
    "${of_two[@]}" "${line[@]}" > $out.log 2>&1 &
    launcher=$!
    pid=$(of_rank 0) || failed "$out: it ended before it was told to"
    scancel --signal=TERM "$(squeue -h -o %A)"
    ended $launcher 60 || failed "srun does not end by scancel"
    wait $launcher && failed "a run that was ended is no success"
    grep -q "checkpoint" $out.log || failed "$out: rank 0 saved nothing"
    "${of_two[@]}" "${line[@]}" > $out-on.log 2>&1 || failed "$out does not go on"
    same $out whole

    for each in 4 2; do
        out=sbatch-$((4 / each)) start=
        [ $each = 4 ] || start="srun --overcommit"
        set_line $out $each 60
        printf '#!/bin/bash\nexec %s %s\n' "$start" "${line[*]}" > $out.sh
        sbatch --wait --quiet -n 2 --overcommit -o "$work/$out.log" $out.sh || failed "$out"
    done
    same sbatch-1 alone
    same sbatch-2 hand-2
    told+=("srun of Slurm $version: 2 and 4 processes to the bytes of processes started by hand, a script of sbatch \
alone and by srun; ended $killed s after a process was killed, by its name; killed and ended by scancel it goes on to \
the same bytes")
    echo "${told[-1]}"
fi

[ ${#told[@]} -gt 0 ] || { echo "neither torchrun nor srun is there"; exit 2; }
for outcome in "${told[@]}"; do
    echo "| $(date +%F) | launchers | $outcome | $((SECONDS - begun)) |" >> "$record"
done
