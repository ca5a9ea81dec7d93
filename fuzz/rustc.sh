#!/bin/bash
# The compiler of a campaign (RUSTC_WRAPPER of campaign.sh): adds the flags in COVERAGE for what reads files.
#
# The code around a parser (hashes, threads, regular expressions at work, terminal output, the targets themselves) takes
# a multiple of its time with counters, gives a fuzzer no information, and has its counters scanned after every
# execution. csv-core makes the table that it reads by for each file anew.
readers="qlora-train serde_json safetensors parquet flatbuffers arrow-array arrow-buffer arrow-data arrow-ipc
    arrow-schema arrow-select csv flate2 zlib-rs snap lz4_flex serde-saphyr granit-parser glob minijinja
    minijinja-contrib tokenizers fancy-regex spm_precompiled"
is_reader=$(for reader in $readers; do [ "$reader" = "${CARGO_PKG_NAME:-}" ] && echo yes; done)
# Build scripts and macros run while this builds: they are compiled without a target.
if [[ -n "$is_reader" && " $* " = *" --target "* ]]; then
    exec "$@" $COVERAGE
fi
exec "$@"
