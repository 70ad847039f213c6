// How a token is chosen from the logits: the chain of samplers that llama_cpp makes, so that C++ and Python draw alike.

#pragma once

#include "pmpd.h"

#include "llama-cpp.h"

// Fails with PMPD_ARGUMENT where a value makes no sense
llama_sampler_ptr pmpd_sampler_make(const struct pmpd_sampling & sampling, const llama_vocab * vocab);

// The probability that the last evaluated token's logits give to a token, whatever is sampled how
float pmpd_probability(llama_context * ctx, int32_t token);
