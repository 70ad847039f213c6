// Schedules by their names, as pmpd_edge/schedule/spec.py takes them: static, fixed and learned.
//
// All of them are switches at decode steps. Those of a learned schedule are known once the prompt is in the KV cache.

#pragma once

#include "manifest.h"
#include "predictor.h"

#include <memory>
#include <string>
#include <vector>

struct llama_context;

struct pmpd_schedule {
    std::vector<int32_t>     precisions; // all that an answer may use
    std::vector<pmpd_switch> switches;

    // of a learned one
    std::shared_ptr<const pmpd_predictor> predictor;
    int32_t                               pair       = 0;
    double                                confidence = 0.0;

    // The prompt has been evaluated, and nothing else is in the context
    void start(llama_context * ctx);

    // The precision of decode step `step` (1 is the first)
    int32_t precision(int64_t step) const;
};

// Make a schedule from its specification; fails with PMPD_ARGUMENT or, where a predictor is not usable, PMPD_BUNDLE
//   spec       : "static", "static:8@1,4@86", "fixed:4", "learned", "learned:8-2", "learned:8-2,0.9"
//   high_steps : for static: decode steps before the first switch, -1 leaves it where it is
pmpd_schedule pmpd_schedule_make(const std::string & spec, const pmpd_manifest & manifest, int32_t high_steps);

// Everything at one precision
pmpd_schedule pmpd_schedule_fixed(int32_t precision);
