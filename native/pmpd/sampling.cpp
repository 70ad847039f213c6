#include "sampling.h"

#include "failure.h"

#include <algorithm>
#include <cmath>

static constexpr int32_t LAST_N = 64; // tokens that the repetition penalty looks at

struct pmpd_sampling pmpd_default_sampling(void) {
    return {
        /*.temperature    =*/ 0.0f,
        /*.top_k          =*/ 40,
        /*.top_p          =*/ 0.95f,
        /*.min_p          =*/ 0.05f,
        /*.repeat_penalty =*/ 1.0f,
        /*.seed           =*/ LLAMA_DEFAULT_SEED,
    };
}

static void check(const struct pmpd_sampling & sampling) {
    const auto refuse = [](const char * name, float value, const char * hint) {
        throw pmpd_failure(PMPD_ARGUMENT, std::string("a ") + name + " of " + std::to_string(value) + ": " + hint);
    };
    // written so that a NaN fails
    if (!(sampling.temperature >= 0.0f) || !std::isfinite(sampling.temperature)) {
        refuse("temperature", sampling.temperature, "give 0 or more");
    }
    if (!(sampling.top_p >= 0.0f && sampling.top_p <= 1.0f)) {
        refuse("top_p", sampling.top_p, "give one in [0, 1]");
    }
    if (!(sampling.min_p >= 0.0f && sampling.min_p <= 1.0f)) {
        refuse("min_p", sampling.min_p, "give one in [0, 1]");
    }
    if (!(sampling.repeat_penalty > 0.0f) || !std::isfinite(sampling.repeat_penalty)) {
        refuse("repeat_penalty", sampling.repeat_penalty, "give one above 0; 1 is none");
    }
}

llama_sampler_ptr pmpd_sampler_make(const struct pmpd_sampling & sampling, const llama_vocab * vocab) {
    check(sampling);
    llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    const auto        add = [&](llama_sampler * sampler) { llama_sampler_chain_add(chain.get(), sampler); };

    add(llama_sampler_init_penalties(llama_vocab_n_tokens(vocab), LAST_N, sampling.repeat_penalty, 0.0f, 0.0f));
    if (sampling.temperature == 0.0f) {
        add(llama_sampler_init_greedy());
        return chain;
    }
    add(llama_sampler_init_top_k(sampling.top_k));
    add(llama_sampler_init_top_p(sampling.top_p, 1));
    add(llama_sampler_init_min_p(sampling.min_p, 1));
    add(llama_sampler_init_temp(sampling.temperature));
    add(llama_sampler_init_dist(sampling.seed));
    return chain;
}

float pmpd_probability(llama_context * ctx, int32_t token) {
    const int32_t n      = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    const float * logits = llama_get_logits_ith(ctx, -1);
    const float   max    = *std::max_element(logits, logits + n);
    double        sum    = 0.0;
    for (int32_t i = 0; i < n; ++i) {
        sum += std::exp(logits[i] - max);
    }
    return (float) (std::exp((double) logits[token] - max)/sum);
}
