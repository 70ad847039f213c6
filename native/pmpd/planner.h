// How many tokens to draft: what a round costs on this device against what it is likely to give.
//
// A round drafts K tokens and verifies them in one evaluation. With a share a of drafts that stand, each on its own, it
// gives 1 + a + ... + a^K tokens. Knows nothing about models: costs and rounds come in, numbers of drafts go out. The
// same as pmpd_edge/lossless/planner.py.

#pragma once

#include <cstdint>
#include <vector>

// One verification of drafts, or one step without
struct pmpd_round {
    int32_t drafted           = 0;     // tokens that were drafted
    int32_t kept              = 0;     // those of them that became part of the answer
    bool    is_rejected       = false; // the next one was replaced by another token
    int32_t tokens            = 0;     // of the answer, the verifier's own included
    double  drafting_seconds  = 0.0;
    double  verifying_seconds = 0.0;

    double seconds() const { return drafting_seconds + verifying_seconds; }
};

// Drafts of the rounds whose costs are measured, and at most; those between are interpolated. From 8 rows on
// llama.cpp's CPU kernels add in another order, so that answers would be less often the same to the bit
inline constexpr int32_t PMPD_MEASURED[] = { 1, 2, 4, 6 };

// Seconds on this device; they follow what later rounds take
struct pmpd_costs {
    double              step;   // a token without drafts, at the verifier's level
    double              begin;  // what the first draft takes more than the others: the switch to its level
    double              draft;  // each draft
    std::vector<double> verify; // [1 + most()], to evaluate a token and so many drafts at once; the first is a step

    // From verifications of as many drafts as PMPD_MEASURED says, or the first few of them
    pmpd_costs(double step, double begin, double draft, const std::vector<double> & measured);

    int32_t most      () const; // drafts whose costs are known
    double  gain      (int32_t drafts, double acceptance) const; // times as fast as without drafts
    int32_t best      (double acceptance) const; // the number of drafts that gains most; 0 where none gains enough
    double  break_even() const; // the smallest share of drafts that must stand; above 1 where not even all are enough
    void    update    (const pmpd_round & done);
};

// Chooses the number of drafts of each round, and none where they do not pay. What drafting loses against steps without
// drafts is kept account of: beyond a share of what those would have taken, no more is risked until it is made good
class pmpd_planner {
public:
    explicit pmpd_planner(pmpd_costs costs);

    int32_t next() const; // the number of drafts of the next round

    // Learn from a round that next() asked for; it may have had fewer drafts, or been left
    void record(const pmpd_round & done);

    const pmpd_costs & known_costs() const { return costs; }

private:
    pmpd_costs costs;
    double     trials;
    double     kept;
    double     lost        = 0.0; // seconds, against steps without drafts
    double     plain       = 0.0; // seconds that those would have taken
    int32_t    since_probe = 0;
    int32_t    best        = 0;
    bool       can_pay     = false;

    void decide();
};
