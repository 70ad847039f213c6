#include "options.h"

#include "failure.h"

#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <set>

static constexpr int32_t DEFAULT_CTX     = 4096;
static constexpr int32_t DEFAULT_BATCH   = 512;
static constexpr int32_t DEFAULT_THREADS = 4;   // more hardly help, and on phones they hurt
static constexpr int32_t CTX_MULTIPLE    = 256; // llama.cpp rounds up to it
static constexpr int32_t MAX_CTX         = 1 << 30;
static constexpr int32_t MAX_DRAFTS      = 16;  // of a round: a context has room for the logits of so many at any time

struct pmpd_options pmpd_default_options(void) {
    return {
        /*.method       =*/ "pmpd",
        /*.scheduler    =*/ nullptr,
        /*.high_steps   =*/ -1,
        /*.prefill      =*/ 0,
        /*.draft_tokens =*/ 0,
        /*.draft        =*/ 0,
        /*.n_ctx        =*/ 0,
        /*.n_batch      =*/ DEFAULT_BATCH,
        /*.n_threads    =*/ 0,
        /*.n_gpu_layers =*/ -1,
        /*.use_mmap     =*/ false,
        /*.pin_threads  =*/ false,
    };
}

static void check_range(const char * name, int64_t value, int64_t min, int64_t max) {
    if (value < min || value > max) {
        const std::string range = "[" + std::to_string(min) + ", " + std::to_string(max) + "]";
        throw pmpd_failure(PMPD_ARGUMENT, std::string(name) + " " + std::to_string(value) + ": give one in " + range);
    }
}

static pmpd_plan make_fixed(int32_t precision) {
    pmpd_plan plan;
    plan.schedule = pmpd_schedule_fixed(precision);
    plan.prefill  = precision;
    return plan;
}

static pmpd_plan make_scheduled(const struct pmpd_options & options, const pmpd_manifest & manifest) {
    pmpd_plan plan;
    plan.schedule = pmpd_schedule_make(options.scheduler ? options.scheduler : "static", manifest, options.high_steps);
    plan.prefill  = manifest.prefill;
    return plan;
}

pmpd_plan pmpd_plan_make(const struct pmpd_options & options, const pmpd_manifest & manifest) {
    pmpd_check_argument(options.method != nullptr, "no method: begin with pmpd_default_options()");
    const std::string method      = options.method;
    const bool        is_lossless = method == "lossless";
    const int32_t     highest     = manifest.levels.front().precision;
    const int32_t     lowest      = manifest.levels.back().precision;
    if (method == "high" || method == "low") {
        return make_fixed(method == "high" ? highest : lowest);
    }
    const std::string unknown = "no method '" + method + "': choose one of pmpd, high, low, lossless";
    pmpd_check_argument(method == "pmpd" || is_lossless, unknown);
    check_range("high_steps",   options.high_steps,   -1, INT32_MAX);
    check_range("draft_tokens", options.draft_tokens,  0, MAX_DRAFTS);

    const bool is_high = is_lossless && !options.scheduler && options.high_steps < 0;
    pmpd_plan  plan    = is_high ? make_fixed(highest) : make_scheduled(options, manifest);
    if (options.prefill != 0) {
        plan.prefill = manifest.level(options.prefill).precision;
    }
    if (is_lossless) {
        const int32_t draft = options.draft != 0 ? manifest.level(options.draft).precision : lowest;
        plan.drafter        = pmpd_drafter(draft, options.draft_tokens);
    }
    return plan;
}

std::vector<int32_t> pmpd_plan::precisions() const {
    std::set<int32_t> all(schedule.precisions.begin(), schedule.precisions.end());
    all.insert(prefill);
    if (drafter.precision > 0) {
        all.insert(drafter.precision);
    }
    return { all.rbegin(), all.rend() };
}

llama_model_params pmpd_model_params_make(const struct pmpd_options & options) {
    check_range("n_gpu_layers", options.n_gpu_layers, -1, INT32_MAX);
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers       = options.n_gpu_layers == -1 ? INT32_MAX : options.n_gpu_layers;
    params.load_mode          = options.use_mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    return params;
}

llama_context_params pmpd_context_params_make(const struct pmpd_options & options, const pmpd_manifest & manifest) {
    check_range("n_ctx",     options.n_ctx,     0, MAX_CTX);
    check_range("n_batch",   options.n_batch,   1, MAX_CTX);
    check_range("n_threads", options.n_threads, 0, GGML_MAX_N_THREADS);

    const int32_t n_ctx     = options.n_ctx ? options.n_ctx : std::min(DEFAULT_CTX, manifest.context_length);
    const int32_t n_threads = options.n_threads ? options.n_threads : std::min(DEFAULT_THREADS, pmpd_fast_cores());

    llama_context_params params = llama_context_default_params();
    params.n_ctx           = (n_ctx + CTX_MULTIPLE - 1)/CTX_MULTIPLE*CTX_MULTIPLE;
    params.n_batch         = std::min((int32_t) params.n_ctx, options.n_batch);
    params.n_ubatch        = std::min((int32_t) params.n_batch, DEFAULT_BATCH);
    params.n_outputs_max   = std::min((int32_t) params.n_batch, 1 + MAX_DRAFTS); // not a row for each token of a batch
    params.n_threads       = n_threads;
    params.n_threads_batch = n_threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.no_perf         = true;
    return params;
}
