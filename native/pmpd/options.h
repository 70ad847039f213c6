// What the options of a session mean for a bundle: parameters for llama.cpp, and the plan of precisions.

#pragma once

#include "manifest.h"
#include "session.h"

#include "llama.h"

// Fail with PMPD_ARGUMENT where a value makes no sense

pmpd_plan            pmpd_plan_make          (const struct pmpd_options & options, const pmpd_manifest & manifest);
llama_model_params   pmpd_model_params_make  (const struct pmpd_options & options);
llama_context_params pmpd_context_params_make(const struct pmpd_options & options, const pmpd_manifest & manifest);
