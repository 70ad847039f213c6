// How much memory a session would take, without taking it: llama.cpp loads the models' metadata and plans its buffers.

#include "backend.h"
#include "bundle.h"
#include "failure.h"
#include "levels.h"
#include "log.h"
#include "options.h"

#include "../src/llama-ext.h" // llama.cpp's own, not part of its API

#include <algorithm>
#include <set>

static llama_model_ptr load_metadata(const std::string & path, const struct pmpd_options & options) {
    llama_model_params params = pmpd_model_params_make(options);
    params.no_alloc           = true;
    params.load_mode          = LLAMA_LOAD_MODE_NONE;

    pmpd_log_capture log;
    llama_model_ptr  model(llama_model_load_from_file(path.c_str(), params));
    if (!model) {
        const std::string why = log.reason("llama.cpp gives no reason");
        throw pmpd_failure(PMPD_BUNDLE, path + ": does not load (" + why + "): " + PMPD_CONVERT_AGAIN);
    }
    return model;
}

struct parts {
    uint64_t weights; // a matrix that two kinds of buffers hold, as embeddings and as output, counts twice
    uint64_t context; // KV cache and compute buffers
};

// In bytes
static parts parts_of(llama_model * model, const llama_context_params & params) {
    pmpd_log_capture  log;
    llama_context_ptr ctx(llama_init_from_model(model, params));
    if (!ctx) {
        throw pmpd_failure(PMPD_ARGUMENT, "these options do not fit: " + log.reason("llama.cpp gives no reason"));
    }
    log.drop(); // opening a session says it again
    parts found = {};
    for (const auto & [type, memory] : llama_get_memory_breakdown(ctx.get())) {
        found.weights += memory.model;
        found.context += memory.context + memory.compute;
    }
    return found;
}

static uint64_t estimate(const pmpd_manifest & manifest, const struct pmpd_options & options) {
    const std::vector<int32_t> used    = pmpd_plan_make(options, manifest).precisions();
    uint64_t                   n_bytes = 0;
    for (const std::string & name : pmpd_files_of(manifest, used)) {
        n_bytes += manifest.files.at(name).bytes;
    }
    std::set<std::string> bases;
    uint64_t              context = 0;
    for (const int32_t precision : used) {
        const std::string & base = manifest.level(precision).weights[0];
        if (!bases.insert(base).second) {
            continue;
        }
        const llama_model_ptr model = load_metadata(manifest.file_path(base), options);
        const parts           found = parts_of(model.get(), pmpd_context_params_make(options, manifest));
        const uint64_t        bytes = manifest.files.at(base).bytes;
        n_bytes += std::max(found.weights, bytes) - bytes;
        context = std::max(context, found.context);
    }
    return n_bytes + context;
}

int32_t pmpd_estimate_memory(
        const struct pmpd_bundle  * bundle,
        const struct pmpd_options * options,
        uint64_t                  * n_bytes) {
    return pmpd_guard([&] {
        pmpd_check_argument(bundle && options && n_bytes, "no bundle or options, or nowhere to put the number");
        pmpd_backend_check();
        *n_bytes = estimate(*bundle->manifest, *options);
        return PMPD_OK;
    });
}
