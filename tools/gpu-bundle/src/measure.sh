#!/bin/sh
# Training steps on random weights, one run after the other for a stage of `run`: none stops the others.
# usage: measure STAGE TRAINER RECORDS SEEN [--quick]
stage=$1 trainer=$2 records=$3 seen=$4 quick=$5 failed=0
mkdir -p "$records" "$seen" || exit 1
# Steps that are timed, after one that is not, two with graphs; 0: a single one.
timed=3
[ -z "$quick" ] || timed=1

problem() { failed=1; echo "error: $name: $1"; }

# of_gpu KEY: a number of what the run says of the GPU's memory.
of_gpu() {
    printf '%s\n' "$flat" | sed -n 's/.*"device":{\([^}]*\)}.*/\1/p' | sed -n "s/.*\"$1\":\([0-9][0-9]*\).*/\1/p"
}

# measure LABEL SHAPE TOKENS STEPS ARGUMENT...
measure() {
    label=$1 shape=$2 tokens=$3 steps=$4
    shift 4
    name="$shape $tokens $label" fused=''
    case " $*" in *' --linear fused'*) fused=-fused ;; esac
    file="$records/$(date -u +%Y-%m-%d-%H%M)-$shape-$tokens-$label.json"
    echo "== $name $*"
    set -- bench --json --device cuda --shape "$shape" --seq "$tokens" --steps "$steps" "$@"
    if ! "$trainer" "$@" >"$file.partial"; then
        rm -f "$file.partial"
        problem 'it was not measured'
        return
    fi
    mv "$file.partial" "$file"
    flat=$(tr -d ' \n' <"$file")
    printf '%s\n' "$flat"
    planned=$(of_gpu planned_bytes) taken=$(of_gpu peak_bytes)
    if [ -z "$planned" ] || [ -z "$taken" ]; then
        problem 'it does not say how much of the GPU was taken'
    elif [ "$taken" -gt "$planned" ]; then
        problem "$taken bytes of the GPU were taken, $((taken - planned)) more than planned"
    fi
    compare
}

# Losses and norms of the gradients are those of every other run on this shape and row, to the bit, whatever its levers
# are: where the fused kernels are asked for, of those where they are. A run of fewer steps has the first ones.
compare() {
    found=$(printf '%s\n' "$flat" | sed -n 's/.*"steps":\[\([^]]*\)\].*/\1,/p') before="$seen/$shape-$tokens$fused"
    case $found in
    *loss*grad_norm*) ;;
    *)
        problem 'it tells no losses and norms of its steps'
        return
        ;;
    esac
    if [ ! -e "$before" ]; then
        printf '%s\n' "$found" >"$before"
        return
    fi
    expected=$(cat "$before")
    case $found in "$expected"*) return ;; esac
    case $expected in "$found"*) return ;; esac
    problem "its losses or norms are other than those of the first run on this shape: $found and $expected"
}

# with_graphs SHAPE TOKENS STEPS: the same steps by separate launches and as graphs, and what the graphs took.
with_graphs() {
    graphs_of=$1 graphs_at=$2
    measure graphs-off "$@" --cuda-graphs off
    taken_without=$taken planned_without=$planned seconds_without=$(of_step)
    measure graphs-on "$@" --cuda-graphs on
    echo "$graphs_of $graphs_at: $seconds_without s a step by separate launches, $(of_step) s as graphs, which took" \
        "$((${taken:-0} - ${taken_without:-0})) bytes of the GPU ($((${planned:-0} - ${planned_without:-0})) planned)"
}

# Seconds of a step of the last run.
of_step() { printf '%s\n' "$flat" | sed -n 's/.*"step_seconds":\([0-9.e-]*\).*/\1/p'; }

case $stage in
# Speed, with all of the GPU.
steps)
    measure auto llama-3-8b 2048 $timed
    measure auto llama-3-70b 2048 $timed
    if [ -z "$quick" ]; then
        measure auto llama-3-70b 4096 $timed
        measure auto llama-3-8b 8192 1
        # Beside the first, which keeps what fits: what computing all of it again costs.
        measure recompute llama-3-8b 2048 $timed --gradient-checkpointing true
    fi
    ;;
# Each lever alone and all together, on a model that needs none of them.
levers)
    measure none llama-3-8b 2048 1 --gradient-checkpointing false --weights resident --lm-head resident \
        --optimizer-states resident --token-tile off
    measure all llama-3-8b 2048 1 --gradient-checkpointing offload --weights host --lm-head host \
        --optimizer-states host_with_masters --token-tile 512
    if [ -z "$quick" ]; then
        measure recompute llama-3-8b 2048 1 --gradient-checkpointing true
        measure offload llama-3-8b 2048 1 --gradient-checkpointing offload
        measure weights-host llama-3-8b 2048 1 --weights host
        measure lm-head-host llama-3-8b 2048 1 --lm-head host
        measure states-host llama-3-8b 2048 1 --optimizer-states host
        measure masters-host llama-3-8b 2048 1 --optimizer-states host_with_masters
        measure tile llama-3-8b 2048 1 --token-tile 512
    fi
    ;;
# Models whose launches take the host about as long as what they launch takes the GPU.
graphs)
    repeated=20
    [ -z "$quick" ] || repeated=4
    with_graphs qwen3-0.6b 512 $repeated
    if [ -z "$quick" ]; then
        with_graphs qwen3-0.6b 2048 $repeated
        with_graphs llama-3.2-1b 512 $repeated
    fi
    ;;
# The memory of cards of 48, 24 and 8 GB, less what is in use there. None of them has the instructions for which weights
# are dequantized: where that takes much of the memory, the fused kernels compute, as there.
caps)
    measure 44.4gib llama-3-70b 2048 1 --device-memory 44.4GiB
    measure 23.5gib llama-3-70b 2048 1 --device-memory 23.5GiB
    measure 7.5gib llama-3-8b 2048 1 --device-memory 7.5GiB
    if [ -z "$quick" ]; then
        measure 44.4gib-offload llama-3-70b 2048 1 --device-memory 44.4GiB --gradient-checkpointing offload --linear fused
        measure 44.4gib-offload llama-3-70b 8192 0 --device-memory 44.4GiB --gradient-checkpointing offload --linear fused
        measure 23.5gib llama-3-70b 8192 0 --device-memory 23.5GiB --linear fused
        # Copies that take longer than what is computed beside them, and no copies.
        measure streamed llama-3-70b 1024 1 --weights host --gradient-checkpointing true
        measure resident llama-3-70b 1024 1 --weights resident --gradient-checkpointing true
        # Too little memory on the host for anything to wait there.
        measure 44.4gib-host-3gib llama-3-70b 2048 0 --device-memory 44.4GiB --host-memory 3GiB
        measure 7.5gib llama-3-8b 8192 0 --device-memory 7.5GiB
        measure 7.5gib llama-3-8b 32768 0 --device-memory 7.5GiB
        measure 7.5gib llama-3-70b 2048 0 --device-memory 7.5GiB --linear fused
        measure 7.5gib llama-3-8b 65536 0 --device-memory 7.5GiB --linear fused
    fi
    ;;
# Rows whose single step takes minutes.
long)
    if [ -z "$quick" ]; then
        measure 44.4gib llama-3-70b 65536 0 --device-memory 44.4GiB --host-memory 100GiB
        measure 23.5gib llama-3-70b 32768 0 --device-memory 23.5GiB
    fi
    measure 44.4gib llama-3-70b 32768 0 --device-memory 44.4GiB
    ;;
*)
    echo "error: measure: no stage is named $stage"
    exit 2
    ;;
esac
[ $failed -ne 0 ] || echo "$(ls "$records" | grep -c 'json$') rows in $records"
exit $failed
