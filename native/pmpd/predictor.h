// The learned scheduler's predictor: how many decode steps at a high precision does an answer need?
//
// It looks once, after the prompt, at K and V of one layer. In every KV head a trained query attends over the
// positions; what it gathers from V is normalised and goes, with the logarithm of the number of tokens, through two
// linear layers to the classes: shares of max_new_tokens that are spent at the high precision. A file holds such a
// network for each of several (high, low) pairs of precisions. It is trained and written by pmpd_edge/calibrate.
//
// After the paper's learned scheduler (Progressive Mixed-Precision Decoding for Efficient LLM Inference, ICLR 2025).

#pragma once

#include "pmpd.h" // PMPD_API

#ifdef __cplusplus
extern "C" {
#endif

    // Never changes once it is loaded: any number of threads may use it at the same time
    struct pmpd_predictor;

    enum pmpd_predictor_status {
        PMPD_PREDICTOR_OK         =  0,
        PMPD_PREDICTOR_ARGUMENT   = -1, // no such pair, or no tokens
        PMPD_PREDICTOR_NOT_FINITE = -2, // K or V holds infinities or NaNs, or numbers so large that sums of them are
        PMPD_PREDICTOR_MEMORY     = -3,
    };

    // Read a predictor; path is UTF-8
    // On failure returns NULL, and error holds the reason (in one line, cut to error_size bytes)
    PMPD_API struct pmpd_predictor * pmpd_predictor_load(const char * path, char * error, size_t error_size);
    PMPD_API void                    pmpd_predictor_free(struct pmpd_predictor * predictor);

    // The fingerprint of the bundle that it was trained for: it is of no use to other weights
    PMPD_API const char * pmpd_predictor_fingerprint   (const struct pmpd_predictor * predictor);
    PMPD_API int32_t      pmpd_predictor_layer         (const struct pmpd_predictor * predictor); // -1 is the last one
    PMPD_API int32_t      pmpd_predictor_n_head_kv     (const struct pmpd_predictor * predictor);
    PMPD_API int32_t      pmpd_predictor_head_dim_k    (const struct pmpd_predictor * predictor);
    PMPD_API int32_t      pmpd_predictor_head_dim_v    (const struct pmpd_predictor * predictor);
    PMPD_API int32_t      pmpd_predictor_max_new_tokens(const struct pmpd_predictor * predictor);
    PMPD_API int32_t      pmpd_predictor_n_classes     (const struct pmpd_predictor * predictor);
    PMPD_API int32_t      pmpd_predictor_n_pairs       (const struct pmpd_predictor * predictor);

    // Shares of max_new_tokens, rising [n_classes]
    PMPD_API const float * pmpd_predictor_classes(const struct pmpd_predictor * predictor);

    // Of a pair in [0, n_pairs): its precisions, and how often each class was right in training [n_classes]
    PMPD_API int32_t       pmpd_predictor_high (const struct pmpd_predictor * predictor, int32_t pair);
    PMPD_API int32_t       pmpd_predictor_low  (const struct pmpd_predictor * predictor, int32_t pair);
    PMPD_API const float * pmpd_predictor_prior(const struct pmpd_predictor * predictor, int32_t pair);

    // Compute the probability of each class
    //   k             [n_tokens][n_head_kv][head_dim_k], after RoPE, as llama_get_kv_seq gives it
    //   v             [n_tokens][n_head_kv][head_dim_v]
    //   probabilities [n_classes], undefined on failure
    // Returns PMPD_PREDICTOR_OK or another status
    PMPD_API int32_t pmpd_predictor_run(
            const struct pmpd_predictor * predictor,
                                int32_t   pair,
                          const float   * k,
                          const float   * v,
                                int32_t   n_tokens,
                                float   * probabilities);

#ifdef __cplusplus
}
#endif
