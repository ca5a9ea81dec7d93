#!/bin/bash
# Trains in three processes on two machines that are network namespaces of this one, over a slow link and over one that
# is cut in the middle (needs root and ip; no library of MPI).
#
#   benches/reliability/two_machines.sh
#
# slow       10 Mbit/s each way: the adapter is, to the byte, the one that three processes without a network make
# cut        the link goes down while they train: all end within a bounded time and name a rank; the run then goes on,
#            and ends in the bytes of one that was never cut
set -eu -o pipefail
cd "$(dirname "$0")/../.."
cargo build --release --locked --quiet -p qlora-train
program=$PWD/target/release/qlora-train model=$PWD/tests/golden/qwen3
work=$(mktemp -d) silence=3
namespaces=(qlora-one qlora-two)

remove() {
    for namespace in "${namespaces[@]}"; do ip netns del "$namespace" 2>/dev/null || true; done
    rm -rf "$work"
}
trap remove EXIT
for namespace in "${namespaces[@]}"; do ip netns add "$namespace"; done
ip link add one netns qlora-one type veth peer name two netns qlora-two
ip -n qlora-one addr add 10.77.0.1/24 dev one
ip -n qlora-two addr add 10.77.0.2/24 dev two
for machine in one two; do
    ip -n "qlora-$machine" link set lo up
    ip -n "qlora-$machine" link set "$machine" up
    tc -n "qlora-$machine" qdisc add dev "$machine" root tbf rate 10mbit burst 32kbit latency 400ms
done

cd "$work"
for row in $(seq 24); do
    length=$((8 + row % 9))
    ids=$(seq -s, $((row % 7 + 3)) $((row % 7 + 3 + length)))
    echo "{\"input_ids\": [$ids], \"labels\": [$ids]}"
done > rows.jsonl

# group OUT HOW ADDRESS STEPS: starts ranks 2, 1 and 0; HOW is "apart", rank 0 on one machine and the others on the
# other, or "here".
group() {
    pids=()
    for rank in 2 1 0; do
        place=()
        [ "$2" = here ] || place=(ip netns exec "$([ "$rank" = 0 ] && echo qlora-one || echo qlora-two)")
        env RANK="$rank" WORLD_SIZE=3 LOCAL_RANK=0 MASTER_ADDR="$3" MASTER_PORT=29511 QLORA_JOIN_SECONDS=30 \
            QLORA_SILENCE_SECONDS=$silence "${place[@]}" "$program" train --model "$model" --data rows.jsonl \
            --output-dir "$1" --max-length 64 --lora-r 4 --allow all --packing false --lora-dropout 0.1 --save-steps 5 \
            --gradient-accumulation-steps 2 --max-steps "$4" --threads 1 --resume-from-checkpoint > "$1.$rank.log" 2>&1 &
        pids+=($!)
    done
}
ended() {
    status=0
    for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
    return $status
}
failed() {
    echo "failed: $1"
    tail -n 3 ./*.log
    exit 1
}

steps=400
group whole here 127.0.0.1 $steps
ended || failed "three processes without a network"

begun=$SECONDS
group slow apart 10.77.0.1 $steps
ended || failed "a slow link"
cmp whole/adapter_model.safetensors slow/adapter_model.safetensors || failed "a slow link: other bytes"
echo "slow: the same bytes after $steps steps, $((SECONDS - begun)) s"

group cut apart 10.77.0.1 $steps
until [ -d cut/checkpoint-20 ] || [ -d cut/checkpoint-25 ] || [ -d cut/checkpoint-30 ]; do sleep 0.05; done
ip -n qlora-one link set one down
begun=$SECONDS
if ended; then failed "the link was cut after the end"; fi
took=$((SECONDS - begun))
for rank in 0 1 2; do
    grep -q "error: .*rank [012] (.*has not answered for $silence s" cut.$rank.log || failed "rank $rank does not say why it ended"
done
[ $took -le $((4 * silence)) ] || failed "the end took $took s"
ip -n qlora-one link set one up
group cut apart 10.77.0.1 $steps
ended || failed "going on"
cmp whole/adapter_model.safetensors cut/adapter_model.safetensors || failed "going on: other bytes"
echo "cut: all ended within $took s and named a rank; the run went on to the same bytes"
