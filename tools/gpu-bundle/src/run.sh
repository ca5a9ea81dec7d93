#!/bin/sh
# Checks and measures the kernels on a machine with a GPU and its driver. Nothing else is needed, except
# compute-sanitizer for three of the stages, and NCCL for one.
usage() {
    cat <<'END'
usage: ./run [--output DIR] [--quick] [--stages LIST] [--limit STAGE=SECONDS]... [--total SECONDS] [--filter TEXT]
             [--model DIR]
  --output DIR     where logs, the summary and the records go (default: ./output)
  --quick          fewer shapes in the benches, fewer cases in the suite, fewer steps
  --stages LIST    of calibrate,doctor,parity,contraction,suite,training,steps,levers,graphs,caps,loading,bench,long,
                   stepcheck,memcheck,racecheck,nccl (default: all, in this order: what tells most comes first)
  --limit S=N      stage S is stopped after N seconds
  --total N        after N seconds in all the stage that runs is stopped, and no other begins (default: 1500); a machine
                   that is lent for 10 minutes at a time is asked for the stages in parts, each with --total 580
  --filter TEXT    the benches measure only what has this in its name
  --model DIR      one stage more, curve: the demo's run of this model on the GPU, twice, and on the CPU
exit status: 0 all passed; 1 a stage failed or could not run; 2 wrong usage; 3 no GPU or no driver, nothing was run
END
}

here=$(cd "$(dirname "$0")" && pwd) || exit 2
all=calibrate,doctor,parity,contraction,suite,training,steps,levers,graphs,caps,loading,bench,long
all=$all,stepcheck,memcheck,racecheck,nccl
output=./output stages=$all quick= filter= model= total=1500
limit_calibrate=60 limit_doctor=60 limit_parity=60 limit_contraction=60 limit_suite=240 limit_training=240 limit_steps=240
limit_levers=180 limit_caps=540 limit_loading=180 limit_bench=420 limit_long=540 limit_stepcheck=180 limit_memcheck=240
limit_racecheck=240 limit_nccl=60 limit_curve=540 limit_graphs=120

is_stage() {
    case $1 in *,*) return 1 ;; esac
    case ,$all,curve, in *,"$1",*) ;; *) return 1 ;; esac
}
is_number() { case $1 in '' | *[!0-9]*) return 1 ;; esac; }
wrong() { echo "run: $1" >&2; usage >&2; exit 2; }

while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage; exit 0 ;;
    --quick) quick=--quick ;;
    --output | --stages | --limit | --total | --filter | --model)
        [ $# -ge 2 ] || wrong "$1 needs a value"
        case $1 in
        --output) output=$2 ;;
        --stages) stages=$2 ;;
        --total)
            is_number "$2" || wrong "--total $2: expected seconds"
            total=$2
            ;;
        --filter) filter=$2 ;;
        --model) model=$2 ;;
        --limit)
            is_stage "${2%%=*}" || wrong "--limit $2: no stage is named ${2%%=*}"
            is_number "${2#*=}" || wrong "--limit $2: expected STAGE=SECONDS"
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

# The executables travel in compressed parts, each list of them is one executable's.
for list in "$here"/bin/*.parts; do
    [ -e "$list" ] || continue
    program=${list%.parts}
    # shellcheck disable=SC2046 # names without spaces
    if (cd "$here/parts" && gzip -dc $(cat "$list")) >"$program" && chmod +x "$program"; then
        rm "$list"
    else
        echo "run: $program cannot be put together from $here/parts" >&2
        exit 2
    fi
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
failed=0 not_run='' begun=$(date +%s)

# run_stage NAME COMMAND...: its output in NAME.log, its end in the summary.
run_stage() {
    name=$1 log="$output/$1.log"
    shift
    eval "limit=\$limit_$name"
    started=$(date +%s)
    left=$((total - started + begun))
    if [ $left -lt 1 ]; then
        failed=1 not_run=$not_run,$name
        say "NOT RUN  $name: the $total s of --total are over"
        return
    fi
    [ "$limit" -le $left ] || limit=$left
    echo "== $name (at most $limit s)"
    timeout -k 10 "$limit" "$@" >"$log" 2>&1
    status=$?
    took=$(($(date +%s) - started))
    # A borrowed machine returns files of limited size: the end of a log is worth most.
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

# The line in which a tool sums itself up, or its last line.
closing() {
    ends='^(test result: |dX over |loading: |[0-9]+ rows in |.*: [0-9]+ figures at |=+ (ERROR|RACECHECK) SUMMARY|error: )'
    line=$(grep -E "$ends" "$1" | tail -n 2 | tr '\n' ' ')
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

# measured STAGE: training steps on random weights.
measured() {
    run_stage "$1" sh "$here/measure" "$1" "$here/bin/qlora-train" "$output/records/steps" "$scratch/seen" $quick
}

for stage in $(echo "$stages" | tr , ' '); do
    case $stage in
    # First on a card that nothing has warmed yet: cycles of single instructions, for `cargo xtask predict --calibrate`.
    calibrate) run_stage calibrate "$here/bin/calibrate" --record "$output/records/calibration" ;;
    doctor) run_stage doctor "$here/bin/qlora-train" doctor ;;
    parity) run_stage parity "$here/bin/suite" ptx_parity:: --nocapture ;;
    # Before the rest of the suite: what the emulation cannot show.
    contraction) run_stage contraction "$here/bin/suite" long_contraction:: --nocapture ;;
    suite)
        if [ -n "$quick" ]; then PROPTEST_CASES=8; else PROPTEST_CASES=256; fi
        export PROPTEST_CASES
        run_stage suite "$here/bin/suite" --nocapture
        ;;
    # Training on the GPU against the CPU, and the commands of the trainer itself.
    training) run_stage training "$here/bin/training" --nocapture ;;
    steps | levers | graphs | caps | long) measured "$stage" ;;
    # A model in 16 bits that the GPU quantizes while it is loaded, beside the host's quantizing.
    loading)
        QLORA_LOADING_RECORDS=$output/records/loading
        export QLORA_LOADING_RECORDS
        run_stage loading "$here/bin/training" --ignored loading:: --nocapture
        ;;
    # Gradients that GPUs add up: one rank on the first GPU, two where there are two. It needs libnccl.so.2.
    nccl) run_stage nccl "$here/bin/training" --ignored nccl:: --nocapture ;;
    memcheck) sanitized memcheck memcheck 2 "$here/bin/suite" --skip interop:: ;;
    racecheck) sanitized racecheck racecheck 1 "$here/bin/suite" --skip interop:: ;;
    # Whole steps of a model.
    stepcheck) sanitized stepcheck memcheck 1 "$here/bin/training" training::a_step_of_every_kind ;;
    curve)
        QLORA_CURVE_MODEL=$model QLORA_CURVE_ROWS=$here/rows
        export QLORA_CURVE_MODEL QLORA_CURVE_ROWS
        run_stage curve "$here/bin/training" --ignored curve:: --nocapture
        ;;
    bench) run_stage bench "$here/bin/bench" --bench $quick --record "$output/records" ${filter:+"$filter"} ;;
    esac
done
[ -z "$not_run" ] || say "go on with --stages ${not_run#,}"
if [ $failed -eq 0 ]; then say "all passed"; else say "NOT all passed"; fi
exit $failed
