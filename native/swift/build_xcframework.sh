#!/usr/bin/env bash
# Make build/pmpd.xcframework for macOS, iOS and its simulator:  native/swift/build_xcframework.sh
# Needs Xcode, CMake, Ninja and a Python with patch-ng and scikit-build-core. Not run yet where this was written.
set -euo pipefail
cd "$(dirname "$0")"

headers=build/headers
mkdir -p "$headers"
cp ../pmpd/pmpd.h "$headers/"
printf 'module CPmpd {\n    header "pmpd.h"\n    export *\n}\n' > "$headers/module.modulemap"

# What the shared libraries are made of, as one static library: an app then has nothing to embed and to sign.
build() { # NAME, then options of CMake
    local name=$1
    shift
    cmake -S .. -B "build/$name" -G Ninja -DPMPD_BUILD_PACKAGE=OFF -DGGML_METAL=ON -DGGML_METAL_EMBED_LIBRARY=ON \
        -DGGML_OPENMP=OFF -DGGML_NATIVE=OFF "$@"
    cmake --build "build/$name" --target pmpd
    find "build/$name" -name '*.o' -print0 | xargs -0 libtool -static -o "build/$name/libpmpd.a"
}

build macos -DCMAKE_OSX_ARCHITECTURES='arm64;x86_64' -DCMAKE_OSX_DEPLOYMENT_TARGET=14.0
build ios -DCMAKE_SYSTEM_NAME=iOS -DCMAKE_OSX_DEPLOYMENT_TARGET=17.0
build simulator -DCMAKE_SYSTEM_NAME=iOS -DCMAKE_OSX_SYSROOT=iphonesimulator -DCMAKE_OSX_DEPLOYMENT_TARGET=17.0

arguments=()
for name in macos ios simulator; do
    arguments+=(-library "build/$name/libpmpd.a" -headers "$headers")
done
rm -rf build/pmpd.xcframework
xcodebuild -create-xcframework "${arguments[@]}" -output build/pmpd.xcframework
