#include "session.h"

#include "backend.h"
#include "bundle.h"
#include "chat.h"
#include "cpu.h"
#include "failure.h"
#include "log.h"
#include "options.h"

#include <algorithm>

//
// the KV cache and its record
//

const llama_vocab * pmpd_session::vocab() const {
    return llama_model_get_vocab(llama_get_model(ctx.get()));
}

void pmpd_session::clear() {
    const llama_model * model        = llama_get_model(ctx.get());
    const bool          is_recurrent = llama_model_is_recurrent(model) || llama_model_is_hybrid(model);
    llama_memory_clear(llama_get_memory(ctx.get()), is_recurrent);
    tokens.clear();
    precisions.clear();
}

int32_t pmpd_session::reuse(const std::vector<int32_t> & prompt) {
    llama_memory_t memory = llama_get_memory(ctx.get());
    size_t         n      = 0;
    // sliding windows and recurrent models may not have the beginning any more
    if (!tokens.empty() && llama_memory_seq_pos_min(memory, 0) == 0) {
        const size_t n_max = std::min(tokens.size(), prompt.size() - 1); // logits are never reused
        while (n < n_max && tokens[n] == prompt[n] && precisions[n] == plan.prefill) {
            ++n;
        }
    }
    if (n == 0 || !llama_memory_seq_rm(memory, -1, (llama_pos) n, -1)) {
        clear();
        return 0;
    }
    tokens.resize(n);
    precisions.resize(n);
    return (int32_t) n;
}

void pmpd_session::give_up(size_t n) {
    if (n < tokens.size()) {
        llama_memory_seq_rm(llama_get_memory(ctx.get()), -1, (llama_pos) n, -1);
        tokens.resize(n);
        precisions.resize(n);
    }
}

void pmpd_session::check_cancelled() const {
    if (is_cancelled) {
        throw pmpd_failure(PMPD_CANCELLED, "the answer was cancelled");
    }
}

namespace {

// Lets a cancellation reach an evaluation while it exists. The callback is asked at every operation of the graph: too
// often for decode steps, which are short anyway
class abortable {
public:
    abortable(llama_context * ctx, std::atomic<bool> * flag) : ctx(ctx) {
        llama_set_abort_callback(ctx, [](void * data) { return ((std::atomic<bool> *) data)->load(); }, flag);
    }

    ~abortable() { llama_set_abort_callback(ctx, nullptr, nullptr); }

private:
    llama_context * ctx;
};

} // namespace

void pmpd_session::prefill(const int32_t * added, int32_t n, int32_t precision) {
    const abortable guard(ctx.get(), &is_cancelled);
    for (int32_t i = 0; i < n; i += n_batch) {
        check_cancelled();
        evaluate(added + i, std::min(n_batch, n - i), precision, nullptr);
    }
}

void pmpd_session::decode(const int32_t * added, int32_t n, int32_t precision) {
    std::vector<int8_t> has_logits(n, 1);
    evaluate(added, n, precision, has_logits.data());
}

void pmpd_session::evaluate(const int32_t * added, int32_t n, int32_t precision, int8_t * has_logits) {
    const pmpd_pinned pinned(cores);
    levels->put(ctx.get(), precision);
    llama_batch batch = llama_batch_get_one(const_cast<int32_t *>(added), n); // it is only read
    batch.logits      = has_logits;

    pmpd_log_capture log;
    const int32_t    result = llama_decode(ctx.get(), batch);
    if (result != 0) { // parts of it may have been evaluated
        llama_memory_seq_rm(llama_get_memory(ctx.get()), -1, (llama_pos) tokens.size(), -1);
    }
    if (result != 0 && is_cancelled) {
        log.drop();
        check_cancelled();
    }
    if (result != 0) {
        const std::string why = log.reason("llama_decode returned " + std::to_string(result));
        throw pmpd_failure(PMPD_FAILED, "the evaluation failed: " + why);
    }
    tokens.insert(tokens.end(), added, added + n);
    precisions.insert(precisions.end(), n, precision);
}

pmpd_busy::pmpd_busy(pmpd_session & session) : session(session) {
    if (session.is_busy.exchange(true)) {
        throw pmpd_failure(PMPD_BUSY, "the session is generating: wait, or cancel it");
    }
}

pmpd_busy::~pmpd_busy() {
    session.is_busy = false;
}

//
// the C API
//

static llama_context_ptr make_context(llama_model * model, const llama_context_params & params) {
    pmpd_log_capture  log;
    llama_context_ptr ctx(llama_init_from_model(model, params));
    if (!ctx) {
        const std::string reason    = log.reason("llama.cpp gives no reason");
        const bool        is_memory = reason.find("alloc") != std::string::npos; // it says so in words only
        const std::string what      = "no context of " + std::to_string(params.n_ctx) + " tokens (" + reason + ")";
        throw pmpd_failure(is_memory ? PMPD_MEMORY : PMPD_FAILED, what + (is_memory ? ": choose a smaller n_ctx" : ""));
    }
    return ctx;
}

// Drafts are taken back from the KV cache. (One of a sliding window can do that too, as it holds all rows here)
static void check_drafting(const pmpd_plan & plan, const pmpd_manifest & manifest, const llama_model * model) {
    const bool        is_recurrent = llama_model_is_recurrent(model) || llama_model_is_hybrid(model);
    const std::string what         = "lossless takes drafts back, which is not possible with recurrent layers";
    if (plan.drafter.precision > 0 && is_recurrent) {
        throw pmpd_failure(PMPD_ARGUMENT, manifest.name + ": " + what + ": use another method");
    }
}

static std::unique_ptr<pmpd_session> open_session(
        const pmpd_bundle                    & bundle,
        const struct pmpd_options            & options,
        const pmpd_levels::progress_function & progress) {
    const llama_context_params params = pmpd_context_params_make(options, *bundle.manifest);

    auto session      = std::make_unique<pmpd_session>();
    session->manifest = bundle.manifest;
    session->plan     = pmpd_plan_make(options, *bundle.manifest);
    session->levels   = std::make_unique<pmpd_levels>(bundle.manifest, pmpd_model_params_make(options));
    session->n_batch  = (int32_t) params.n_batch;

    const std::vector<int32_t> used = session->plan.precisions();
    session->levels->load(used, progress);
    if (options.pin_threads) {
        session->cores = pmpd_find_fast_cores();
        session->cores.resize(std::min(session->cores.size(), (size_t) params.n_threads));
    }
    llama_model * model = session->levels->base(used.front());
    check_drafting(session->plan, *bundle.manifest, model);
    session->ctx        = make_context(model, params);
    session->n_ctx      = (int32_t) llama_n_ctx(session->ctx.get());
    session->chat_stop  = pmpd_chat_stop_text(model);
    session->levels->fit(session->ctx.get(), used);
    return session;
}

int32_t pmpd_session_open(
        const struct pmpd_bundle  * bundle,
        const struct pmpd_options * options,
        bool (*progress)(float share, void * user_data),
        void                      * user_data,
        struct pmpd_session      ** session) {
    return pmpd_guard([&] {
        pmpd_check_argument(bundle && options && session, "no bundle or options, or nowhere to put the session");
        *session = nullptr;
        pmpd_backend_check();
        const auto loading = [&](float share) { return !progress || progress(share, user_data); };
        *session           = open_session(*bundle, *options, loading).release();
        return PMPD_OK;
    });
}

void pmpd_session_free(struct pmpd_session * session) {
    delete session;
}

int32_t pmpd_session_configure(struct pmpd_session * session, const struct pmpd_options * options) {
    return pmpd_guard([&] {
        const pmpd_busy busy(*session);
        pmpd_plan       plan = pmpd_plan_make(*options, *session->manifest);
        check_drafting(plan, *session->manifest, llama_get_model(session->ctx.get()));
        session->levels->load(plan.precisions(), [](float) { return true; });
        session->levels->fit(session->ctx.get(), plan.precisions());
        plan.drafter.keep(session->plan.drafter);
        session->plan = std::move(plan);
        return PMPD_OK;
    });
}

int32_t pmpd_session_n_ctx(const struct pmpd_session * session) {
    return session->n_ctx;
}

int32_t pmpd_session_clear(struct pmpd_session * session) {
    return pmpd_guard([&] {
        const pmpd_busy busy(*session);
        session->clear();
        return PMPD_OK;
    });
}

void pmpd_session_cancel(struct pmpd_session * session) {
    session->is_cancelled = true;
}

static int32_t copy_tokens(const std::vector<int32_t> & from, int32_t * to, int32_t n_max) {
    std::copy_n(from.begin(), std::max(std::min((int32_t) from.size(), n_max), 0), to);
    return (int32_t) from.size();
}

int32_t pmpd_apply_chat_template(
        struct pmpd_session       * session,
        const struct pmpd_message * messages,
        size_t                      n_messages,
        int32_t                   * tokens,
        int32_t                     n_tokens_max) {
    return pmpd_guard([&] {
        for (size_t i = 0; i < n_messages; ++i) {
            pmpd_check_argument(messages[i].role && messages[i].content, "a message without role or content");
        }
        const pmpd_busy     busy(*session);
        const llama_model * model = llama_get_model(session->ctx.get());
        session->is_cancelled     = false;
        const auto is_cancelled = [&] { return session->is_cancelled.load(); };
        return copy_tokens(pmpd_render_chat(model, messages, n_messages, is_cancelled), tokens, n_tokens_max);
    });
}

const char * pmpd_chat_stop(const struct pmpd_session * session) {
    return session->chat_stop.c_str();
}

int32_t pmpd_tokenize(
        const struct pmpd_session * session,
        const char                * text,
        int32_t                     text_len,
        bool                        add_special,
        bool                        parse_special,
        int32_t                   * tokens,
        int32_t                     n_tokens_max) {
    return pmpd_guard([&] {
        pmpd_check_argument(text && text_len >= 0, "no text");
        const std::string given(text, text_len);
        return copy_tokens(pmpd_tokens_of(session->vocab(), given, add_special, parse_special), tokens, n_tokens_max);
    });
}
