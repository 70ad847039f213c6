// Generates the tokens of an answer in rounds: the low level drafts, the verifier evaluates the drafts at once, and
// keeps what it would have written itself. A round without drafts is a decode step. The same as
// pmpd_edge/lossless/rounds.py.
//
// The drafts' KV rows are removed before the verification, so every row that stays was computed by the verifier.
// However a round ends, what stays is what has been evaluated before the last token that was given.

#pragma once

#include "planner.h"
#include "sampling.h"
#include "session.h"

#include <functional>
#include <vector>

class pmpd_rounds {
public:
    // Takes a token, the row of the last evaluation that it was sampled from, and whether it had been drafted; returns
    // whether the answer goes on
    using give_function = std::function<bool(int32_t token, int32_t row, bool drafted)>;

    // Fails with PMPD_ARGUMENT where a value of sampling makes no sense
    pmpd_rounds(pmpd_session & session, const struct pmpd_sampling & sampling, give_function give);

    // Give the first token, once the prompt has been evaluated; returns whether the answer goes on
    bool first();

    // Draft and verify what follows the last token, and give what is kept and the verifier's token after it; likewise
    bool next();

private:
    struct draft {
        int32_t     token;
        pmpd_choice choice; // what it was drawn from; nothing where it was the likeliest
    };

    pmpd_session      & session;
    const give_function give;
    pmpd_sampler        sampler;
    pmpd_random         random;
    int32_t             token   = 0; // the last one
    int32_t             n_given = 0;

    int32_t            room       (int32_t precision) const;
    std::vector<draft> make_drafts(int32_t count, pmpd_round & done);
    draft              draw       (pmpd_sampler & ahead);
    int32_t            verify     (const std::vector<draft> & drafts, int32_t precision, pmpd_round & done);
    int32_t            judge      (const draft * drafted, int32_t row, pmpd_round & done);
    bool               ends       (int32_t id) const;
};
