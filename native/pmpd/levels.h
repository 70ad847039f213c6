// The loaded models of a bundle, and which of them a context evaluates with.
//
// Each weights file is loaded once, when a level first needs it, and shared by all levels that sum it.

#pragma once

#include "manifest.h"

#include "llama-cpp.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

class pmpd_levels {
public:
    // share of the bytes of what is loaded at present, 0 to 1; false stops loading
    using progress_function = std::function<bool(float share)>;

    pmpd_levels(std::shared_ptr<const pmpd_manifest> manifest, const llama_model_params & params);

    // Load the files of levels; fails with PMPD_BUNDLE, PMPD_MEMORY or PMPD_CANCELLED
    void load(const std::vector<int32_t> & precisions, const progress_function & progress);

    // The model of a level's base, which is loaded: what a context is made of
    llama_model * base(int32_t precision) const;

    // See that loaded levels fit the context, so that putting it there later cannot fail
    void fit(llama_context * ctx, const std::vector<int32_t> & precisions);

    // Evaluate what follows at a level that fits the context; the KV cache stays
    void put(llama_context * ctx, int32_t precision);

private:
    std::shared_ptr<const pmpd_manifest>   manifest;
    llama_model_params                     params;
    std::map<std::string, llama_model_ptr> models; // by file; they must outlive the context
    int32_t                                current = 0;

    void load_file(const std::string & name, const progress_function & progress);
    void set      (llama_context * ctx, int32_t precision) const;
};

// A level's files, of several levels: each once
std::vector<std::string> pmpd_files_of(const pmpd_manifest & manifest, const std::vector<int32_t> & precisions);
