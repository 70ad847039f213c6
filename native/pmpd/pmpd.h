// Progressive mixed-precision decoding of a bundle, for programs without Python: phones, servers, other languages.
//
// A bundle is opened and checked, then loaded into a session: one llama.cpp context, one conversation. An answer is
// generated with a callback for each token; the session keeps the KV cache, and with it the precision of every row, so
// that a prefix is reused only where prefill would compute it at the same precision. The tokens and the steps at which
// precision changes are those of the Python package for the same bundle, prompt and seed, but for lossless answers where
// the number of drafts follows how long they take (draft_tokens 0).
//
// A chat template is a program that comes with the bundle: values within values without end can end the process.
//
// Every call that can fail returns a status and leaves the reason, in one line, in pmpd_error(), which belongs to the
// calling thread. No exception leaves the library, and it has no state but what its objects hold, and where the log
// goes. Any number of sessions may run at the same time, each in one thread at a time; pmpd_session_cancel() may be
// called from any. Texts are UTF-8.

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#    ifdef PMPD_BUILD
#        define PMPD_API __declspec(dllexport)
#    else
#        define PMPD_API __declspec(dllimport)
#    endif
#else
#    define PMPD_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

    struct pmpd_bundle;
    struct pmpd_session;

    enum pmpd_status {
        PMPD_OK           =  0,
        PMPD_ARGUMENT     = -1, // a value that makes no sense, or does not fit the bundle
        PMPD_BUNDLE       = -2, // not a bundle, damaged, or of a version that this library does not read
        PMPD_MEMORY       = -3, // not enough memory
        PMPD_CONTEXT_FULL = -4, // the prompt leaves no room for an answer
        PMPD_CANCELLED    = -5,
        PMPD_BUSY         = -6, // the session is generating
        PMPD_FAILED       = -7, // llama.cpp failed; the message says how
    };

    // Why the last call in this thread failed; "" where it did not
    PMPD_API const char * pmpd_error(void);

    // Warnings and errors of llama.cpp go to log, or nowhere where it is NULL (the default: standard error)
    // Not to be called while another thread uses the library
    PMPD_API void pmpd_log_set(void (*log)(int32_t level, const char * text, void * user_data), void * user_data);

    // Load backends that were built as separate libraries (GGML_BACKEND_DL), of each kind the one that suits best
    // directory is where they lie; NULL: where the program does. Without such backends there is nothing to do
    PMPD_API int32_t pmpd_load_backends(const char * directory);

    //
    // Bundle
    //

    // Read the manifest, and check the presence, size and magic of its files
    PMPD_API int32_t pmpd_bundle_open(const char * path, struct pmpd_bundle ** bundle);
    PMPD_API void    pmpd_bundle_free(struct pmpd_bundle * bundle); // sessions opened from it stay

    // Check the SHA-256 of every file; progress, if not NULL, is called with the bytes read so far, and stops the check
    // (PMPD_CANCELLED) by returning false
    PMPD_API int32_t pmpd_bundle_verify(
            const struct pmpd_bundle * bundle,
            bool (*progress)(uint64_t n_bytes, void * user_data),
            void * user_data);

    PMPD_API const char * pmpd_bundle_name          (const struct pmpd_bundle * bundle);
    PMPD_API const char * pmpd_bundle_architecture  (const struct pmpd_bundle * bundle);
    PMPD_API int64_t      pmpd_bundle_parameters    (const struct pmpd_bundle * bundle);
    PMPD_API int32_t      pmpd_bundle_context_length(const struct pmpd_bundle * bundle); // what it was trained on
    PMPD_API uint64_t     pmpd_bundle_bytes         (const struct pmpd_bundle * bundle); // of all weights files
    PMPD_API int32_t      pmpd_bundle_prefill       (const struct pmpd_bundle * bundle); // precision of prompts
    PMPD_API int32_t      pmpd_bundle_max_new_tokens(const struct pmpd_bundle * bundle); // of its schedule
    PMPD_API bool         pmpd_bundle_has_predictor (const struct pmpd_bundle * bundle); // for "learned"

    // Levels, from the highest precision to the lowest; i in [0, n_levels)
    PMPD_API int32_t pmpd_bundle_n_levels (const struct pmpd_bundle * bundle);
    PMPD_API int32_t pmpd_bundle_precision(const struct pmpd_bundle * bundle, int32_t i);
    PMPD_API double  pmpd_bundle_bpw      (const struct pmpd_bundle * bundle, int32_t i); // real bits per weight

    // The bundle's schedule as text, "8@1,4@86": precision 8 from step 1, 4 from step 86
    PMPD_API const char * pmpd_bundle_schedule(const struct pmpd_bundle * bundle);

    //
    // Session
    //

    struct pmpd_options {
        // "pmpd", "high", "low", or "lossless": a lower level drafts what the schedule's verify
        const char * method;
        // for pmpd and lossless: "static", "static:8@1,4@86", "fixed:4", "learned", "learned:8-2,0.9"
        // NULL: for pmpd "static", for lossless everything at the highest precision
        const char * scheduler;
        int32_t      high_steps;      // for static: decode steps before the first switch; -1: as in the schedule
        int32_t      prefill;         // the precision of prompts; 0: the bundle's, or the highest with lossless alone
        int32_t      draft_tokens;    // for lossless: how many at a time, at most 16; 0: as many as pay on this device
        int32_t      draft;           // for lossless: the precision of the drafts; 0: the lowest

        int32_t      n_ctx;           // context in tokens; 0: what the model was trained on, at most 4096
        int32_t      n_batch;         // tokens that are evaluated together at most
        int32_t      n_threads;       // 0: the fast cores, at most 4
        int32_t      n_gpu_layers;    // -1: all, where there is a GPU backend
        bool         use_mmap;        // off: weight types that the CPU repacks would be held twice
        bool         pin_threads;     // bind the threads to the fast cores
    };

    struct pmpd_sampling {
        float    temperature;         // 0: the likeliest token
        int32_t  top_k;
        float    top_p;
        float    min_p;
        float    repeat_penalty;      // 1: none
        uint32_t seed;
    };

    PMPD_API struct pmpd_options  pmpd_default_options (void);
    PMPD_API struct pmpd_sampling pmpd_default_sampling(void);

    // Bytes that a session with these options takes: weights, KV cache and buffers, estimated before loading
    // Returns a status; *n_bytes is compared with what the device has by the caller
    PMPD_API int32_t pmpd_estimate_memory(
            const struct pmpd_bundle  * bundle,
            const struct pmpd_options * options,
            uint64_t                  * n_bytes);

    // Load what the method and scheduler need; progress (0 to 1) may be NULL, and stops loading by returning false
    PMPD_API int32_t pmpd_session_open(
            const struct pmpd_bundle  * bundle,
            const struct pmpd_options * options,
            bool (*progress)(float share, void * user_data),
            void                      * user_data,
            struct pmpd_session      ** session);

    // Not while the session generates
    PMPD_API void    pmpd_session_free(struct pmpd_session * session);

    // Change method, scheduler, high_steps, prefill, draft_tokens and draft for the following answers; others are as
    // when it was opened. Loads the levels that it needs and that are not loaded yet. On failure nothing is changed
    PMPD_API int32_t pmpd_session_configure(struct pmpd_session * session, const struct pmpd_options * options);

    PMPD_API int32_t pmpd_session_n_ctx(const struct pmpd_session * session);

    // Forget the KV cache
    PMPD_API int32_t pmpd_session_clear(struct pmpd_session * session);

    // End a running answer as soon as possible, its prefill included, or a chat template that is being applied: they
    // return PMPD_CANCELLED
    // What was not running is not affected. From any thread
    PMPD_API void    pmpd_session_cancel(struct pmpd_session * session);

    struct pmpd_message {
        const char * role; // "system", "user", "assistant"
        const char * content;
    };

    // Token ids of a conversation through the model's chat template, with the beginning of an answer
    // Returns their number, or a status; where n_tokens_max is smaller, only as many are written
    PMPD_API int32_t pmpd_apply_chat_template(
                  struct pmpd_session * session,
            const struct pmpd_message * messages,
                               size_t   n_messages,
                              int32_t * tokens,
                              int32_t   n_tokens_max);

    // A text that ends the answers of a chat too: a model may write out its end token's name. For pmpd_request.stop; ""
    // is none. Valid as long as the session is
    PMPD_API const char * pmpd_chat_stop(const struct pmpd_session * session);

    // Token ids of a text; likewise
    PMPD_API int32_t pmpd_tokenize(
            const struct pmpd_session * session,
                           const char * text,
                              int32_t   text_len,
                                 bool   add_special,
                                 bool   parse_special,
                              int32_t * tokens,
                              int32_t   n_tokens_max);

    enum pmpd_finish {
        PMPD_FINISH_NONE    = 0,
        PMPD_FINISH_STOP    = 1, // the model or a stop text ended the answer
        PMPD_FINISH_LENGTH  = 2, // max_new_tokens
        PMPD_FINISH_CONTEXT = 3, // no room left
    };

    struct pmpd_token {
        int32_t      id;
        int32_t      precision;   // of the weights that computed the logits it was sampled from
        float        probability; // that the model gave it, whatever was sampled how
        int32_t      finish;      // enum pmpd_finish: on the last token, why it is the last
        const char * bytes;       // may end within a character; empty for control tokens; valid during the callback
        int32_t      n_bytes;
        bool         drafted;     // a lower level had drafted it (lossless)
    };

    struct pmpd_request {
        const int32_t *      tokens;
        int32_t              n_tokens;
        int32_t              max_new_tokens; // 0: the bundle's
        struct pmpd_sampling sampling;
        const char * const * stop;           // texts that end the answer and are no part of it
        size_t               n_stop;
        // Called after each sampled token, an end-of-answer token included; a token is held back while the text that
        // ends with it may be the beginning of a stop text. Returning false ends the answer: PMPD_CANCELLED
        bool (*callback)(const struct pmpd_token * token, void * user_data);
        void *               user_data;
    };

    // Generate an answer. The tokens that are in the KV cache already are reused where their precision allows
    PMPD_API int32_t pmpd_generate(struct pmpd_session * session, const struct pmpd_request * request);

    struct pmpd_stats {
        int32_t prompt_tokens;
        int32_t reused_tokens;      // of the prompt: their KV rows were kept
        int32_t prefill_precision;
        int32_t decode_steps;
        int32_t n_switches;
        double  prefill_seconds;    // to the first sampled token
        double  decode_seconds;     // in decode steps and sampling, not in callbacks
        double  average_bitwidth;   // mean nominal precision over decode steps; 0 before the first one
        double  average_bpw;        // mean real bits per weight over decode steps

        // of lossless, else 0
        int32_t drafted_tokens;
        int32_t kept_tokens;        // those of them that became part of the answer
        int32_t verifications;      // steps without drafts are none
        double  tokens_per_verification; // mean; 0 before the first one
        double  drafting_seconds;   // of decode_seconds
        double  verifying_seconds;  // likewise, steps without drafts included
    };

    // Of the last answer; during a callback, of the answer so far
    PMPD_API struct pmpd_stats pmpd_session_stats(const struct pmpd_session * session);

    struct pmpd_forecast {
        double break_even; // the share of drafts that must stand for drafting to pay; above 1: it cannot
        double gain;       // times as fast as without drafts, where all stand; 1 where it cannot pay
        double draft;      // what a draft takes of a step
    };

    // What drafting promises on this device, for lossless with draft_tokens 0; all 0 where there is nothing to choose,
    // or the context has no room to try. Measures what is not known yet: a fraction of a second, with large models
    // seconds. pmpd_session_cancel() ends that
    PMPD_API int32_t pmpd_session_forecast(struct pmpd_session * session, struct pmpd_forecast * forecast);

    // The fast cores by the system's own account of their clocks: how many there are
    PMPD_API int32_t pmpd_fast_cores(void);

#ifdef __cplusplus
}
#endif
