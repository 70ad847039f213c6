#!/usr/bin/env bash
# Runs libpmpd under AddressSanitizer and UBSan, under ThreadSanitizer, and fuzzes what reads bundles:
#
#     scripts/check_native.sh [CHECK...]      address, thread, fuzz; all of them by default
#
# Builds in build/check: once for address and fuzz, which need clang, and once for thread; some ten minutes each on two
# cores. FUZZ_SECONDS (600) is how long is fuzzed. CMAKE_ARGS is passed on (-DPMPD_LLAMA_ARCHIVE=FILE: no download).
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=pmpd_edge/models/translator-7m

# OpenMP's own synchronisation is unknown to ThreadSanitizer.
build() { # KIND TARGET FLAGS [CMAKE OPTION...]
    local kind=$1 target=$2 flags=$3
    shift 3
    cmake -S native -B "build/check/$kind" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DGGML_OPENMP=OFF \
        -DPMPD_BUILD_PACKAGE=OFF -DPMPD_BUILD_CHECKS=ON -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" "$@" \
        ${CMAKE_ARGS:-} > "build/check/$kind.log" || fail "$kind"
    cmake --build "build/check/$kind" --target "$target" ${JOBS:+-j "$JOBS"} >> "build/check/$kind.log" || fail "$kind"
}

build_address() { # TARGET
    local flags="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined"
    build clang "$1" "$flags -fsanitize-ignorelist=$PWD/tests/native/upstream.ignorelist" \
        -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++
}

fail() { # KIND
    tail -n 40 "build/check/$1.log" >&2
    exit 1
}

mkdir -p build/check/corpus build/check/seeds
[ $# -gt 0 ] || set -- address thread fuzz
for check; do
    echo "+ $check"
    case $check in
    address)
        build_address pmpd-stress
        build/check/clang/bin/pmpd-stress $bundle
        ;;
    thread)
        build thread pmpd-stress "-fsanitize=thread"
        TSAN_OPTIONS=halt_on_error=1 build/check/thread/bin/pmpd-stress $bundle
        ;;
    fuzz)
        build_address pmpd-fuzz
        cp $bundle/pmpd.json build/check/seeds/manifest
        printf 'sstatic:8@1,4@86' > build/check/seeds/schedule
        head -c 4000 $bundle/translator-7m-q2.gguf > build/check/seeds/header
        build/check/clang/bin/pmpd-fuzz -max_total_time="${FUZZ_SECONDS:-600}" -max_len=65536 -timeout=10 \
            -print_final_stats=1 build/check/corpus build/check/seeds
        ;;
    *)
        echo "$0: no check '$check': choose address, thread or fuzz" >&2
        exit 2
        ;;
    esac
done
