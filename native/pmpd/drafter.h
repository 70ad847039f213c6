// At which level lossless drafts, and how many tokens at a time; measures what decides that when it has to. The same as
// pmpd_edge/lossless/drafter.py and costs.py.

#pragma once

#include "planner.h"
#include "pmpd.h"

#include <map>
#include <utility>

class pmpd_drafter {
public:
    // precision    : of the drafts; 0: there are none
    // draft_tokens : how many at a time; 0: what planners say, which go on from answer to answer
    explicit pmpd_drafter(int32_t precision = 0, int32_t draft_tokens = 0);

    int32_t precision;

    // Go on with what another one for the same context has measured and learned
    void keep(const pmpd_drafter & other);

    // Measure what drafting for the session's schedule costs, where that has to be known and is not; what is in the KV
    // cache stays as it is. Fails with PMPD_CANCELLED
    void prepare(pmpd_session & session);

    // The number of tokens to draft now; 0 where the verifier is no better, or nothing is known of it
    int32_t count(int32_t verifier) const;

    // Learn from a round
    void record(int32_t verifier, const pmpd_round & done);

    // What drafting for a verifier promises; all 0 where nothing was measured
    struct pmpd_forecast forecast(int32_t verifier) const;

private:
    int32_t                                             draft_tokens;
    std::map<std::pair<int32_t, int32_t>, pmpd_planner> planners; // by the precisions of drafts and verifier

    bool is_planned(int32_t verifier) const;
};
