// How a token is chosen from the logits: the chain of samplers that llama_cpp makes, so that C++ and Python draw alike.
// And whether a draft may stand for the verifier's token, as in pmpd_edge/lossless/sampling.py, with the same numbers.

#pragma once

#include "pmpd.h"

#include "llama-cpp.h"

#include <random>
#include <vector>

// Random numbers to draw and judge drafts with: those of numpy's RandomState with the complement of the seed
class pmpd_random {
public:
    explicit pmpd_random(uint32_t seed); // LLAMA_DEFAULT_SEED: another one each time

    double next(); // in [0, 1)

private:
    std::mt19937 engine;
};

// What a sampler chain makes of logits
struct pmpd_choice {
    int32_t              token;         // that it draws with its own random numbers
    std::vector<int32_t> ids;           // [n_candidates], what it draws from
    std::vector<double>  probabilities; // [n_candidates]

    double  probability(int32_t id) const; // 0 where the chain has left it out
    int32_t draw       (pmpd_random & random) const;
};

// The draft, where it may stand, or else the token that replaces it, which is never the draft: what is given is
// distributed as `verifier` (Leviathan et al. 2023, Chen et al. 2023)
//   draft : drawn from `drafter`
int32_t pmpd_judge(int32_t draft, const pmpd_choice & drafter, const pmpd_choice & verifier, pmpd_random & random);

// The chain of one answer, which can be forked to look ahead
class pmpd_sampler {
public:
    // Fails with PMPD_ARGUMENT where a value makes no sense
    pmpd_sampler(const struct pmpd_sampling & sampling, const llama_vocab * vocab);

    const bool is_greedy; // it takes the likeliest token

    // The token that the chain draws from a row of the last evaluation; it is accepted
    int32_t sample(llama_context * ctx, int32_t row);

    // What the chain makes of that row
    pmpd_choice choose(llama_context * ctx, int32_t row);

    // Take a token for a part of the answer: penalties go on from it
    void accept(int32_t token);

    // Another one in the same state
    pmpd_sampler fork() const;

private:
    pmpd_sampler(llama_sampler_ptr chain, bool is_greedy);

    llama_sampler_ptr             chain;
    std::vector<llama_token_data> candidates;
};

// The probability that the logits of a row give to a token, whatever is sampled how
float pmpd_probability(llama_context * ctx, int32_t row, int32_t token);
