// Fuzzes what reads a bundle that anybody may have made: the manifest, schedules, the header of a weights file.
// With clang and -fsanitize=fuzzer (scripts/check_native.sh). The input's first byte says which.

#include "failure.h"
#include "manifest.h"
#include "schedule.h"
#include "tokenizer_hash.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <unistd.h>

static const char * MANIFEST = R"({"format": "pmpd-bundle", "version": 1, "name": "m", "architecture": "llama", "parameters": 1,
 "context_length": 512, "tokenizer_sha256": "0", "layout": "separate", "files": {"a": {"bytes": 1, "sha256": "0", "bpw": 8.5},
 "b": {"bytes": 1, "sha256": "1", "bpw": 4.5}}, "levels": [{"precision": 8, "weights": ["a"]}, {"precision": 4, "weights": ["b"]}],
 "prefill": 8, "schedule": {"kind": "static", "switches": [{"step": 1, "precision": 8}], "max_new_tokens": 256}})";

static void fuzz_manifest(const std::string & text) {
    const pmpd_manifest manifest = pmpd_manifest_parse(text, "bundle");
    for (const pmpd_level & level : manifest.levels) {
        manifest.bpw(manifest.level(level.precision));
    }
    if (manifest.fingerprint().size() != 64 || pmpd_schedule_make("static", manifest, 3).precision(1) < 2) {
        std::abort();
    }
}

static void fuzz_schedule(const std::string & spec) {
    static const pmpd_manifest manifest = pmpd_manifest_parse(MANIFEST, "bundle");
    const pmpd_schedule        schedule = pmpd_schedule_make(spec, manifest, -1);
    for (const int64_t step : { 1, 2, 1000 }) {
        manifest.level(schedule.precision(step));
    }
}

static void fuzz_header(const std::string & bytes) {
    static const std::string path = "/tmp/pmpd-fuzz-" + std::to_string(getpid()) + ".gguf";
    FILE *                   file = std::fopen(path.c_str(), "wb");
    std::fwrite(bytes.data(), 1, bytes.size(), file);
    std::fclose(file);
    pmpd_tokenizer_sha256(path);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const std::string input((const char *) data, size);
    try {
        switch (size > 0 ? data[0] : 0) {
            case 's': fuzz_schedule(input.substr(1)); break;
            case 'G': fuzz_header  (input);           break;
            default:  fuzz_manifest(input);           break;
        }
    } catch (const pmpd_failure & failure) {
        pmpd_error_set(failure.what());
    } catch (const std::runtime_error & error) {
        pmpd_error_set(error.what());
    }
    return 0;
}
