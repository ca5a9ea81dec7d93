#!/bin/bash
# Trains over MPI, in processes that a real mpirun starts, with OpenMPI and with MPICH (both from `cargo xtask setup`;
# libclang from `cargo xtask setup-cuda`). Builds the trainer with the feature `mpi` once for each.
#
#   benches/reliability/mpi.sh              KILLS=30 by default, over both libraries
#
# same       1, 2 and 4 processes: the adapter over MPI is, to the byte, the one over TCP, with both libraries
# meeting    a build for OpenMPI under MPICH's mpirun is refused; doctor says what it adds up over
# stopped    a process that is stopped is named, and all end in time
# kills      any process, at a random moment, is killed: mpirun ends; the run goes on in 2 processes and ends in the
#            same bytes, or in 1, 3 or 4 and ends with the same losses to 1e-6
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
root=$PWD record=$PWD/benches/reliability/record.md model=$PWD/tests/golden/qwen3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
begun=$SECONDS

failed() {
    echo "failed: $1"
    tail -n 5 "$work"/*.log
    exit 1
}

libraries=()
for dir in "$root"/target/tools/{openmpi,mpich}-*; do
    [ -x "$dir/bin/mpirun" ] && libraries+=("$dir")
done
[ ${#libraries[@]} -gt 0 ] || { echo "no mpirun in target/tools: cargo xtask setup fetches it"; exit 2; }
[ -n "${LIBCLANG_PATH:-}" ] || export LIBCLANG_PATH=$root/target/cuda-toolkit/clang/native
[ -n "${BINDGEN_EXTRA_CLANG_ARGS:-}" ] || export BINDGEN_EXTRA_CLANG_ARGS=-I$(cc -print-file-name=include)
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 QLORA_JOIN_SECONDS=30 MASTER_PORT=29521

for dir in "${libraries[@]}"; do
    # The last build linked another library.
    cargo clean --release --quiet -p mpi-sys 2> /dev/null
    MPICC=$dir/bin/mpicc cargo build --release --locked --quiet -p qlora-train --features mpi \
        || failed "the build with $dir"
    cp target/release/qlora-train "$work/qlora-train-$(basename "$dir")" || exit 1
done

cd "$work" || exit 1
for row in $(seq 24); do
    length=$((8 + row % 9))
    ids=$(seq -s, $((row % 7 + 3)) $((row % 7 + 3 + length)))
    echo "{\"input_ids\": [$ids], \"labels\": [$ids]}"
done > rows.jsonl

# start LIBRARY PROCESSES COMMAND…: replaces the shell by mpirun of the library.
start() {
    local dir=$1 processes=$2 bind=()
    shift 2
    case $(basename "$dir") in openmpi-*) bind=(--oversubscribe --bind-to none) ;; esac
    exec env LD_LIBRARY_PATH="${program_of:-$dir}/lib" "$dir/bin/mpirun" -n "$processes" "${bind[@]}" "$@"
}
# train LIBRARY PROCESSES OUT EACH: a run of 60 steps into OUT, with EACH micro-batches of a step on each process.
train() {
    start "$1" "$2" "$work/qlora-train-$(basename "${program_of:-$1}")" train --model "$model" --data rows.jsonl \
        --output-dir "$3" --max-length 64 --lora-r 4 --allow all --packing false --lora-dropout 0.1 --save-steps 5 \
        --gradient-accumulation-steps "$4" --max-steps 60 --threads 1 --compute f32 --logging-steps 1 \
        --resume-from-checkpoint
}
adapter() { echo "$1/adapter_model.safetensors"; }

same=0
for dir in "${libraries[@]}"; do
    name=$(basename "$dir")
    for processes in 1 2 4; do
        for comm in tcp mpi; do
            out=$name-$comm-$processes
            (QLORA_COMM=$comm train "$dir" $processes $out $((4 / processes))) > $out.log 2>&1 || failed "$out"
        done
        [ $processes = 1 ] || grep -q " processes (started by .*) over .*MPI" "$name-mpi-$processes.log" \
            || failed "$name-mpi-$processes did not use MPI"
        for other in "$name-tcp-$processes" "$(basename "${libraries[0]}")-mpi-$processes"; do
            cmp "$(adapter "$name-mpi-$processes")" "$(adapter "$other")" \
                || failed "other bytes: $name, $processes processes, $other"
            same=$((same + 1))
        done
    done
    (start "$dir" 2 "$work/qlora-train-$name" doctor --json) > doctor.json 2> doctor.log || failed "doctor with $name"
    python3 -c 'import json; found = json.load(open("doctor.json"))["processes"]; assert "MPI" in found["over"], found
print("doctor:", found["over"], f"{found['"'bytes_per_second'"'] / 1e9:.2f} GB/s")' || failed "doctor with $name"
done
echo "same: $same comparisons, no byte differs"

if [ ${#libraries[@]} = 2 ]; then
    # MPICH itself refuses to begin under OpenMPI's.
    if (program_of=${libraries[0]} train "${libraries[1]}" 2 mixed 2) > mixed.log 2>&1; then
        failed "a build for another library runs"
    fi
    grep -q "counts this process as rank" mixed.log || failed "a build for another library is not told"
    echo "meeting: a build for another library is refused"
fi

# Processes of the trainer below a process.
below() {
    local child
    for child in $(cat /proc/"$1"/task/*/children 2> /dev/null); do
        case $(cat /proc/"$child"/comm 2> /dev/null) in qlora-train*) echo "$child" ;; esac
        below "$child"
    done
}
# ended PID SECONDS: whether a process ends in time.
ended() {
    local left=$(($2 * 20))
    while kill -0 "$1" 2> /dev/null; do
        [ $((left -= 1)) -gt 0 ] || return 1
        sleep 0.05
    done
}

for dir in "${libraries[@]}"; do
    name=$(basename "$dir")
    (QLORA_STALL_SECONDS=5 train "$dir" 3 "stopped-$name" 2) > "stopped-$name.log" 2>&1 &
    mpirun=$!
    until [ -d "stopped-$name/checkpoint-5" ]; do
        kill -0 $mpirun 2> /dev/null || failed "$name: it ended before a process was stopped"
        sleep 0.02
    done
    mapfile -t ranks < <(below $mpirun)
    kill -STOP "${ranks[1]}"
    ended $mpirun 30 || failed "$name: a process that is stopped does not end the others"
    kill -KILL "${ranks[1]}" 2> /dev/null
    wait $mpirun && failed "$name: a run of which a process was stopped is no success"
    grep -qE "(did not come to the others|did not arrive within)" "stopped-$name.log" \
        || failed "$name: nobody says why it ended"
done
echo "stopped: all ended in time"

# close A B: the losses of two runs are the same to 1e-6.
close() {
    python3 - "$1" "$2" <<'END'
import json, sys
one, other = ([json.loads(line) for line in open(f"{out}/metrics.jsonl")] for out in sys.argv[1:])
assert len(one) == len(other), (len(one), len(other))
for a, b in zip(one, other):
    assert a["step"] == b["step"] and abs(a["loss"] - b["loss"]) <= 1e-6 * max(1.0, abs(b["loss"])), (a, b)
END
}

# A run that nobody ends: moments are drawn from its length and a little beyond.
timed_from=$(date +%s.%N)
(train "${libraries[0]}" 2 timed 2) > timed.log 2>&1 || failed timed
length=$(awk -v from="$timed_from" -v to="$(date +%s.%N)" 'BEGIN { print 1.1 * (to - from) }')
whole=$(basename "${libraries[0]}")-mpi-2 kills=${KILLS:-30}
declare -A counts=([before]=0 [while]=0 [after]=0 [bytes]=0 [losses]=0)
for ((at = 0; at < kills; at++)); do
    dir=${libraries[at % ${#libraries[@]}]} out=killed-$at
    (train "$dir" 2 $out 2) > $out.log 2>&1 &
    mpirun=$!
    sleep "$(awk -v r=$RANDOM -v most="$length" 'BEGIN { printf "%.3f", most * r / 32768 }')"
    mapfile -t ranks < <(below $mpirun)
    if [ ${#ranks[@]} -gt 0 ]; then
        moment=while
        [ -d $out ] || moment=before
        kill -KILL "${ranks[RANDOM % ${#ranks[@]}]}" 2> /dev/null
    else
        moment=before
        kill -0 $mpirun 2> /dev/null || moment=after
        kill -TERM $mpirun 2> /dev/null
    fi
    ended $mpirun 30 || failed "kill $at: mpirun goes on"
    wait $mpirun 2> /dev/null
    counts[$moment]=$((counts[$moment] + 1))
    processes=(2 1 2 3 2 4)
    processes=${processes[at % 6]}
    (train "$dir" $processes $out 2) > $out-on.log 2>&1 || failed "kill $at: it does not go on in $processes processes"
    if [ $processes = 2 ]; then
        cmp "$(adapter $out)" "$(adapter "$whole")" || failed "kill $at: other bytes"
        counts[bytes]=$((counts[bytes] + 1))
    else
        close $out "$whole" || failed "kill $at: other losses in $processes processes"
        counts[losses]=$((counts[losses] + 1))
    fi
    rm -rf "$out"
done
names=$(for dir in "${libraries[@]}"; do basename "$dir"; done | paste -sd ' ')
line="$names: $same adapters as over TCP; kills: $kills, before there was anything ${counts[before]}, while it ran \
${counts[while]}, after its end ${counts[after]}; went on in 2 processes to the same bytes ${counts[bytes]}, in 1, 3 or \
4 to the same losses ${counts[losses]}"
echo "| $(date +%F) | mpi | $line | $((SECONDS - begun)) |" | tee -a "$record"
