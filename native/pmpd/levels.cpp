#include "levels.h"

#include "bundle.h"
#include "failure.h"
#include "log.h"

#include <algorithm>

std::vector<std::string> pmpd_files_of(const pmpd_manifest & manifest, const std::vector<int32_t> & precisions) {
    std::vector<std::string> names;
    for (const int32_t precision : precisions) {
        for (const std::string & name : manifest.level(precision).weights) {
            if (std::find(names.begin(), names.end(), name) == names.end()) {
                names.push_back(name);
            }
        }
    }
    return names;
}

pmpd_levels::pmpd_levels(std::shared_ptr<const pmpd_manifest> manifest, const llama_model_params & params)
    : manifest(std::move(manifest)), params(params) {}

void pmpd_levels::load(const std::vector<int32_t> & precisions, const progress_function & progress) {
    std::vector<std::string> missing;
    double                   n_bytes = 0.0;
    for (const std::string & name : pmpd_files_of(*manifest, precisions)) {
        if (models.count(name) == 0) {
            missing.push_back(name);
            n_bytes += (double) manifest->files.at(name).bytes;
        }
    }
    double done = 0.0; // bytes
    for (const std::string & name : missing) {
        const double size = (double) manifest->files.at(name).bytes;
        load_file(name, [&](float share) { return progress((float) ((done + share*size)/n_bytes)); });
        done += size;
    }
}

void pmpd_levels::load_file(const std::string & name, const progress_function & progress) {
    struct call {
        const progress_function & progress;
        bool                      stopped;
    } call = { progress, false };

    llama_model_params with_progress          = params;
    with_progress.progress_callback_user_data = &call;
    with_progress.progress_callback           = [](float share, void * data) {
        auto * call   = (struct call *) data;
        call->stopped = call->stopped || !call->progress(share);
        return !call->stopped;
    };

    const std::string path = manifest->file_path(name);
    pmpd_check_tokenizer(*manifest, name);
    pmpd_log_capture log;
    llama_model_ptr  model(llama_model_load_from_file(path.c_str(), with_progress));
    if (call.stopped) {
        log.drop();
        throw pmpd_failure(PMPD_CANCELLED, "loading was cancelled");
    }
    if (!model) {
        const std::string reason    = log.reason("llama.cpp gives no reason");
        const bool        is_memory = reason.find("alloc") != std::string::npos; // it says so in words only
        const std::string hint      = is_memory ? "free some memory, or choose a smaller model" : PMPD_CONVERT_AGAIN;
        throw pmpd_failure(is_memory ? PMPD_MEMORY : PMPD_BUNDLE, path + ": does not load (" + reason + "): " + hint);
    }
    models[name] = std::move(model);
}

llama_model * pmpd_levels::base(int32_t precision) const {
    return models.at(manifest->level(precision).weights[0]).get();
}

void pmpd_levels::fit(llama_context * ctx, const std::vector<int32_t> & precisions) {
    // The highest level comes first: where levels are sums, its graphs are the largest; room is made for them once
    std::vector<int32_t> from_high = precisions;
    std::sort(from_high.rbegin(), from_high.rend());
    for (const int32_t precision : from_high) {
        set(ctx, precision);
        if (current != 0) {
            set(ctx, current);
        }
    }
}

void pmpd_levels::put(llama_context * ctx, int32_t precision) {
    if (precision != current) {
        set(ctx, precision);
        current = precision;
    }
}

void pmpd_levels::set(llama_context * ctx, int32_t precision) const {
    std::vector<const llama_model *> weights;
    for (const std::string & name : manifest->level(precision).weights) {
        weights.push_back(models.at(name).get());
    }
    pmpd_log_capture log;
    const int32_t    result = llama_set_weights(ctx, weights.data(), weights.size());
    if (result != 0) {
        const std::string reason = log.reason("llama_set_weights returned " + std::to_string(result));
        const pmpd_status status = result == -2 ? PMPD_MEMORY : PMPD_BUNDLE;
        throw pmpd_failure(status, manifest->path + ": the weights cannot be switched (" + reason + ")");
    }
}
