// A session: one llama.cpp context whose weights change between tokens, and the record of its KV cache.
//
// A KV row is as precise as the weights that computed it, so that a prefix is reused only where prefill would compute
// it at the same precision: then each answer is what it would be in a fresh session. The same as pmpd_edge/runner.py.
// How an answer is generated is in answer.cpp.

#pragma once

#include "drafter.h"
#include "levels.h"
#include "manifest.h"
#include "pmpd.h"
#include "schedule.h"

#include "llama-cpp.h"

#include <atomic>
#include <memory>
#include <vector>

// What decides precisions: method and scheduler, resolved
struct pmpd_plan {
    pmpd_schedule schedule;
    int32_t       prefill = 0;
    pmpd_drafter  drafter;

    std::vector<int32_t> precisions() const; // that prompts, answers and drafts use, from the highest to the lowest
};

// What is measured of an answer while it is generated
struct pmpd_progress {
    struct pmpd_stats       stats      = {};    // decode_seconds: without those of the rounds
    std::vector<pmpd_round> rounds;             // of decoding, a step without drafts included
    bool                    has_drafts = false; // lossless was asked for
    double                  sum_bits   = 0.0;   // of decode steps
    double                  sum_bpw    = 0.0;
    int32_t                 last_token = 0;     // its precision
};

struct pmpd_session {
    std::shared_ptr<const pmpd_manifest> manifest;

    std::unique_ptr<pmpd_levels> levels; // models go after the context
    llama_context_ptr            ctx;

    int32_t              n_ctx   = 0;
    int32_t              n_batch = 0;
    std::vector<int32_t> cores; // to which the threads are bound
    std::string          chat_stop;

    pmpd_plan     plan;
    pmpd_progress progress;

    // the KV cache: tokens, and the precisions at which their rows were computed
    std::vector<int32_t> tokens;
    std::vector<int32_t> precisions;

    std::atomic<bool> is_busy      { false };
    std::atomic<bool> is_cancelled { false };

    const llama_vocab * vocab() const;

    // Drop what is in the KV cache beyond the rows that a prompt can reuse; returns their number, never all of a prompt
    int32_t reuse(const std::vector<int32_t> & prompt);

    // Evaluate tokens at a precision, and remember them; there are logits of the last one. Fails with PMPD_CANCELLED
    void prefill(const int32_t * added, int32_t n, int32_t precision);

    // Likewise at most a batch, with logits of each of them; it cannot be cancelled
    void decode(const int32_t * added, int32_t n, int32_t precision);

    // Go back to the first n tokens
    void give_up(size_t n);

    // Fails with PMPD_CANCELLED where that was asked for
    void check_cancelled() const;

    void clear();

private:
    // has_logits [n]; NULL: the last one alone
    void evaluate(const int32_t * added, int32_t n, int32_t precision, int8_t * has_logits);
};

// Gives up what a session evaluates while this exists, but for the first of its tokens
class pmpd_attempt {
public:
    explicit pmpd_attempt(pmpd_session & session) : session(session), n_before(session.tokens.size()) {}
    ~pmpd_attempt() { session.give_up(n_before + n_kept); }

    pmpd_attempt(const pmpd_attempt &) = delete;
    pmpd_attempt & operator=(const pmpd_attempt &) = delete;

    size_t n_kept = 0; // of the new tokens

private:
    pmpd_session & session;
    const size_t   n_before;
};

// Marks a session as busy while it exists; fails with PMPD_BUSY where it is already
class pmpd_busy {
public:
    explicit pmpd_busy(pmpd_session & session);
    ~pmpd_busy();

    pmpd_busy(const pmpd_busy &) = delete;
    pmpd_busy & operator=(const pmpd_busy &) = delete;

private:
    pmpd_session & session;
};
