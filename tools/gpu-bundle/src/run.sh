#!/bin/sh
# Checks and measures the kernels on a machine with a GPU and its driver. Nothing else is needed, except
# compute-sanitizer for three of the stages, and NCCL for one.
usage() {
    cat <<'END'
usage: ./run [--output DIR] [--quick] [--stages LIST] [--limit STAGE=SECONDS]... [--filter TEXT] [--model DIR]
  --output DIR     where logs, the summary and the record go (default: ./output)
  --quick          fewer shapes in the benches, fewer cases in the suite
  --stages LIST    of calibrate,doctor,twins,contraction,suite,training,nccl,memcheck,racecheck,stepcheck,steps,bench
                   (default: all, in this order)
  --limit S=N      stage S is stopped after N seconds
  --filter TEXT    the benches measure only what has this in its name
  --model DIR      one stage more, curve: the demo's run of this model on the GPU, twice, and on the CPU
exit status: 0 all passed; 1 a stage failed or could not run; 2 wrong usage; 3 no GPU or no driver, nothing was run
END
}

here=$(cd "$(dirname "$0")" && pwd) || exit 2
output=./output stages=calibrate,doctor,twins,contraction,suite,training,nccl,memcheck,racecheck,stepcheck,steps,bench quick= filter= model=
limit_calibrate=60 limit_doctor=60 limit_twins=60 limit_contraction=60 limit_suite=300 limit_training=120 limit_nccl=120
limit_memcheck=300 limit_racecheck=300 limit_stepcheck=300 limit_steps=540 limit_bench=540 limit_curve=540

is_stage() { case $1 in calibrate | doctor | twins | contraction | suite | training | nccl | memcheck | racecheck | stepcheck | steps | bench | curve) ;; *) return 1 ;; esac; }
wrong() { echo "run: $1" >&2; usage >&2; exit 2; }

while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage; exit 0 ;;
    --quick) quick=--quick ;;
    --output | --stages | --limit | --filter | --model)
        [ $# -ge 2 ] || wrong "$1 needs a value"
        case $1 in
        --output) output=$2 ;;
        --stages) stages=$2 ;;
        --filter) filter=$2 ;;
        --model) model=$2 ;;
        --limit)
            is_stage "${2%%=*}" || wrong "--limit $2: no stage is named ${2%%=*}"
            case ${2#*=} in '' | *[!0-9]*) wrong "--limit $2: expected STAGE=SECONDS" ;; esac
            eval "limit_${2%%=*}=${2#*=}"
            ;;
        esac
        shift
        ;;
    *) wrong "unknown argument $1" ;;
    esac
    shift
done
if [ -n "$model" ]; then
    [ -f "$model/config.json" ] || wrong "--model $model: it has no config.json"
    model=$(cd "$model" && pwd)
    case ,$stages, in *,curve,*) ;; *) stages=$stages,curve ;; esac
fi
case ,$stages, in *,curve,*) [ -n "$model" ] || wrong "stage curve needs --model DIR" ;; esac
for stage in $(echo "$stages" | tr , ' '); do is_stage "$stage" || wrong "--stages: no stage is named $stage"; done

# The executables travel compressed.
for packed in "$here"/bin/*.gz; do
    [ ! -e "$packed" ] || gunzip --force "$packed" || { echo "run: $packed cannot be unpacked" >&2; exit 2; }
done

facts=$("$here/bin/bench" --facts 2>&1)
case $? in
0) ;;
3)
    echo "No GPU or no driver was found, so nothing was checked or measured: $facts"
    exit 3
    ;;
*)
    echo "The executables do not start here ($(cat "$here/built.json")): $facts"
    exit 1
    ;;
esac

mkdir -p "$output" || exit 2
output=$(cd "$output" && pwd)
: >"$output/summary.txt"
say() { echo "$1"; echo "$1" >>"$output/summary.txt"; }
say "$facts"
if command -v nvidia-smi >/dev/null 2>&1; then
    say "$(nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current --format=csv,noheader 2>&1)"
fi
say "built from $(tr -d '\n' <"$here/built.json")"

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
export QLORA_BUILT="$here/built.json" QLORA_TRAIN="$here/bin/qlora-train" CRITERION_HOME="$scratch"
failed=0

# run_stage NAME COMMAND...: its output in NAME.log, its end in the summary.
run_stage() {
    name=$1 log="$output/$1.log"
    shift
    eval "limit=\$limit_$name"
    started=$(date +%s)
    echo "== $name (at most $limit s)"
    timeout -k 10 "$limit" "$@" >"$log" 2>&1
    status=$?
    took=$(($(date +%s) - started))
    # What comes back from a borrowed machine is limited in size: the end of a log tells most.
    if [ "$(wc -c <"$log")" -gt 8000000 ]; then
        tail -c 8000000 "$log" >"$log.end" && mv "$log.end" "$log"
    fi
    case $status in
    0) say "passed   $name ($took s): $(closing "$log")" ;;
    124 | 137) failed=1; say "FAILED   $name: stopped after $limit s: $(closing "$log")" ;;
    *) failed=1; say "FAILED   $name ($took s, exit status $status): $(closing "$log")" ;;
    esac
    [ $status -eq 0 ] || tail -n 30 "$log"
}

# The line in which a tool sums itself up, else its last.
closing() {
    line=$(grep -E '^(test result: |dX over |[0-9]+ rows in |.*: [0-9]+ figures at |=+ (ERROR|RACECHECK) SUMMARY|error: )' "$1" | tail -n 2 | tr '\n' ' ')
    [ -n "$line" ] || line=$(tail -n 1 "$1")
    echo "$line" | cut -c 1-300
}

# sanitized NAME TOOL CASES TESTS...: few cases and one thread, as each launch is many times slower.
sanitized() {
    if [ -z "$sanitizer" ]; then
        failed=1
        say "NOT RUN  $1: compute-sanitizer is neither in PATH nor in /usr/local/cuda/bin"
        return
    fi
    stage_name=$1 tool=$2 PROPTEST_CASES=$3
    export PROPTEST_CASES
    shift 3
    run_stage "$stage_name" "$sanitizer" --tool "$tool" --error-exitcode 86 "$@" --test-threads 1 --nocapture
}

# Whole training steps on random weights: shape, tokens of a row, what else. None stops the others. A memory limit is
# that of a 48 GB card.
cat >"$scratch/steps" <<'END'
trainer=$1 records=$2 timed=$3 failed=0
mkdir -p "$records" || exit 1
measure() {
    shape=$1 seq=$2 mode=$3
    file="$records/$(date -u +%Y-%m-%d-%H%M)-$shape-$seq-$mode.json"
    name="$shape $seq $mode"
    shift 3
    echo "== $name $*"
    if "$trainer" bench --json --device cuda --shape "$shape" --seq "$seq" --steps "$timed" --gradient-checkpointing "$mode" "$@" >"$file.partial"; then
        mv "$file.partial" "$file"
        tr -d '\n' <"$file" && echo
    else
        failed=1
        rm -f "$file.partial"
        echo "error: $name was not measured"
    fi
}
measure llama-3-8b 2048 auto
measure llama-3-70b 2048 offload --device-memory 44.4GiB
if [ "$timed" != 1 ]; then
    measure llama-3-70b 2048 auto
    measure llama-3-70b 4096 auto
    measure llama-3-70b 8192 offload --device-memory 44.4GiB
    measure llama-3-70b 16384 offload --device-memory 44.4GiB
    measure llama-3-8b 8192 auto
fi
[ $failed -eq 0 ] && echo "$(ls "$records" | wc -l) rows in $records"
exit $failed
END

for stage in $(echo "$stages" | tr , ' '); do
    case $stage in
    # First on a card that nothing has warmed yet: cycles of single instructions, for `cargo xtask predict --calibrate`.
    calibrate) run_stage calibrate "$here/bin/calibrate" --record "$output/records/calibration" ;;
    doctor) run_stage doctor "$here/bin/qlora-train" doctor ;;
    twins) run_stage twins "$here/bin/suite" twins:: --nocapture ;;
    # Before the rest of the suite: what the emulation cannot show.
    contraction) run_stage contraction "$here/bin/suite" long_contraction:: --nocapture ;;
    suite)
        if [ -n "$quick" ]; then PROPTEST_CASES=8; else PROPTEST_CASES=256; fi
        export PROPTEST_CASES
        run_stage suite "$here/bin/suite" --nocapture
        ;;
    # Training on the GPU against the CPU, and the commands of the trainer itself.
    training) run_stage training "$here/bin/training" --nocapture ;;
    # Gradients that GPUs add up: one rank on the first GPU, two where there are two. It needs libnccl.so.2.
    nccl) run_stage nccl "$here/bin/training" --ignored nccl:: --nocapture ;;
    memcheck) sanitized memcheck memcheck 2 "$here/bin/suite" --skip interop:: ;;
    racecheck) sanitized racecheck racecheck 1 "$here/bin/suite" --skip interop:: ;;
    # Whole steps of a model.
    stepcheck) sanitized stepcheck memcheck 1 "$here/bin/training" training::a_step_of_every_kind ;;
    steps)
        if [ -n "$quick" ]; then timed=1; else timed=3; fi
        run_stage steps sh "$scratch/steps" "$here/bin/qlora-train" "$output/records/steps" $timed
        ;;
    curve)
        QLORA_CURVE_MODEL=$model QLORA_CURVE_ROWS=$here/rows
        export QLORA_CURVE_MODEL QLORA_CURVE_ROWS
        run_stage curve "$here/bin/training" --ignored curve:: --nocapture
        ;;
    bench) run_stage bench "$here/bin/bench" --bench $quick --record "$output/records" ${filter:+"$filter"} ;;
    esac
done
if [ $failed -eq 0 ]; then say "all passed"; else say "NOT all passed"; fi
exit $failed
