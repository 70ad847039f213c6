// A session: one llama.cpp context whose weights change between tokens, and the record of its KV cache.
//
// A KV row is as precise as the weights that computed it, so that a prefix is reused only where prefill would compute
// it at the same precision: then each answer is what it would be in a fresh session. The same as pmpd_edge/runner.py.
// How an answer is generated is in answer.cpp.

#pragma once

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
    int32_t       prefill;

    std::vector<int32_t> precisions() const; // that prompts and answers use, from the highest to the lowest
};

// What is measured of an answer while it is generated
struct pmpd_progress {
    struct pmpd_stats stats      = {};
    double            sum_bits   = 0.0; // of decode steps
    double            sum_bpw    = 0.0;
    int32_t           last_token = 0;   // its precision
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

    // Evaluate tokens at a precision, and remember them; fails with PMPD_CANCELLED where that is possible
    void evaluate(const int32_t * added, int32_t n, int32_t precision, bool is_abortable);

    void clear();
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
