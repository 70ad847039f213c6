#include "sampling.h"

#include "failure.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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

static llama_sampler_ptr make_chain(const struct pmpd_sampling & sampling, const llama_vocab * vocab) {
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

static int32_t n_vocab(const llama_context * ctx) {
    return llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
}

pmpd_sampler::pmpd_sampler(const struct pmpd_sampling & sampling, const llama_vocab * vocab)
    : pmpd_sampler(make_chain(sampling, vocab), sampling.temperature == 0.0f) {}

pmpd_sampler::pmpd_sampler(llama_sampler_ptr chain, bool is_greedy) : is_greedy(is_greedy), chain(std::move(chain)) {}

int32_t pmpd_sampler::sample(llama_context * ctx, int32_t row) {
    return llama_sampler_sample(chain.get(), ctx, row);
}

pmpd_choice pmpd_sampler::choose(llama_context * ctx, int32_t row) {
    const float * logits = llama_get_logits_ith(ctx, row);
    candidates.resize(n_vocab(ctx));
    for (size_t i = 0; i < candidates.size(); ++i) {
        candidates[i] = { (llama_token) i, logits[i], 0.0f };
    }
    llama_token_data_array left = { candidates.data(), candidates.size(), -1, false };
    llama_sampler_apply(chain.get(), &left);

    pmpd_choice choice;
    choice.token = left.data[left.selected].id;
    for (size_t i = 0; i < left.size; ++i) {
        choice.ids.push_back(left.data[i].id);
        choice.probabilities.push_back(left.data[i].p);
    }
    return choice;
}

void pmpd_sampler::accept(int32_t token) {
    llama_sampler_accept(chain.get(), token);
}

pmpd_sampler pmpd_sampler::fork() const {
    return pmpd_sampler(llama_sampler_ptr(llama_sampler_clone(chain.get())), is_greedy);
}

//
// speculative sampling: every number is a double and every sum in the candidates' order, as in Python
//

// the chain's own generator is the same: its numbers must be others
pmpd_random::pmpd_random(uint32_t seed) : engine(seed == LLAMA_DEFAULT_SEED ? std::random_device{}() : ~seed) {}

double pmpd_random::next() {
    const uint32_t high = engine() >> 5;
    const uint32_t low  = engine() >> 6;
    return (high*67108864.0 + low)/9007199254740992.0; // 53 bits
}

static int32_t draw_one(const std::vector<int32_t> & ids, const std::vector<double> & weights, pmpd_random & random) {
    std::vector<double> sums(weights.size());
    std::partial_sum(weights.begin(), weights.end(), sums.begin());
    if (!std::isfinite(sums.back())) {
        throw pmpd_failure(PMPD_FAILED, "the logits are not finite: convert the model again, or use another precision");
    }
    return ids[std::upper_bound(sums.begin(), sums.end(), random.next()*sums.back()) - sums.begin()];
}

double pmpd_choice::probability(int32_t id) const {
    const auto found = std::find(ids.begin(), ids.end(), id);
    return found == ids.end() ? 0.0 : probabilities[found - ids.begin()];
}

int32_t pmpd_choice::draw(pmpd_random & random) const {
    return draw_one(ids, probabilities, random);
}

// what the verifier gives more often than the drafter [n_candidates of the verifier]; nothing for a draft that falls
static std::vector<double> rest_of(const pmpd_choice & drafter, const pmpd_choice & verifier) {
    const auto max = [](const std::vector<int32_t> & ids) { return *std::max_element(ids.begin(), ids.end()); };

    std::vector<double> drafted(1 + std::max(max(drafter.ids), max(verifier.ids)), 0.0);
    for (size_t i = 0; i < drafter.ids.size(); ++i) {
        drafted[drafter.ids[i]] = drafter.probabilities[i];
    }
    std::vector<double> rest(verifier.ids.size());
    for (size_t i = 0; i < rest.size(); ++i) {
        rest[i] = std::max(verifier.probabilities[i] - drafted[verifier.ids[i]], 0.0);
    }
    return rest;
}

int32_t pmpd_judge(int32_t draft, const pmpd_choice & drafter, const pmpd_choice & verifier, pmpd_random & random) {
    if (random.next()*drafter.probability(draft) < verifier.probability(draft)) {
        return draft;
    }
    const std::vector<double> rest = rest_of(drafter, verifier);
    if (*std::max_element(rest.begin(), rest.end()) == 0.0) { // the two are one up to rounding
        return verifier.token;
    }
    return draw_one(verifier.ids, rest, random);
}

float pmpd_probability(llama_context * ctx, int32_t row, int32_t token) {
    const int32_t n      = n_vocab(ctx);
    const float * logits = llama_get_logits_ith(ctx, row);
    const float   max    = *std::max_element(logits, logits + n);
    double        sum    = 0.0;
    for (int32_t i = 0; i < n; ++i) {
        sum += std::exp(logits[i] - max);
    }
    return (float) (std::exp((double) logits[token] - max)/sum);
}
