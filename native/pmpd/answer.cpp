// Generating an answer: prefill, then one token after the other, at the precisions that the schedule says.
// The counterpart of pmpd_edge/stream.py and of Pmpd.generate().

#include "failure.h"
#include "sampling.h"
#include "session.h"
#include "stop_text.h"

#include <chrono>

static double now_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

namespace {

class answer {
public:
    answer(pmpd_session & session, const struct pmpd_request & request);

    void generate();

private:
    pmpd_session              & session;
    const struct pmpd_request & request;
    const std::vector<int32_t>  prompt;
    const int32_t               max_new_tokens;
    const int32_t               room; // tokens that the context has left for the answer
    llama_sampler_ptr           sampler;
    pmpd_stop_text              stop_text;
    int32_t                     n_tokens = 0; // sampled so far

    void         check_prompt() const;
    void         prefill();
    pmpd_sampled sample();
    void         step(int32_t token);
    void         count_token(int32_t precision);
    pmpd_sampled describe(int32_t token) const;
    pmpd_finish  finish(int32_t token) const;
    std::string  bytes_of(int32_t token) const;
    bool         give(const pmpd_sampled & token) const;
};

} // namespace

static std::vector<std::string> stop_texts(const struct pmpd_request & request) {
    std::vector<std::string> texts;
    for (size_t i = 0; i < request.n_stop; ++i) {
        pmpd_check_argument(request.stop[i] != nullptr, "a stop text that is NULL");
        texts.emplace_back(request.stop[i]);
    }
    return texts;
}

static std::vector<int32_t> prompt_of(const struct pmpd_request & request) {
    pmpd_check_argument(request.tokens && request.n_tokens > 0, "an empty prompt: give at least one token");
    return std::vector<int32_t>(request.tokens, request.tokens + request.n_tokens);
}

answer::answer(pmpd_session & session, const struct pmpd_request & request)
    : session(session),
      request(request),
      prompt(prompt_of(request)),
      max_new_tokens(request.max_new_tokens == 0 ? session.manifest->max_new_tokens : request.max_new_tokens),
      room(session.n_ctx - request.n_tokens),
      sampler(pmpd_sampler_make(request.sampling, session.vocab())),
      stop_text(stop_texts(request)) {
    check_prompt();
}

void answer::check_prompt() const {
    const std::string length = std::to_string(max_new_tokens);
    pmpd_check_argument(max_new_tokens > 0, "max_new_tokens " + length + ": give 1 or more, or 0 for the bundle's");
    pmpd_check_argument(request.callback != nullptr, "no callback: nobody would see the tokens");
    const int32_t n_vocab = llama_vocab_n_tokens(session.vocab());
    for (const int32_t token : prompt) {
        const bool is_known = token >= 0 && token < n_vocab;
        pmpd_check_argument(is_known, "token " + std::to_string(token) + ", which is not in the vocabulary");
    }
    if (room <= 0) {
        throw pmpd_failure(
            PMPD_CONTEXT_FULL, "a prompt of " + std::to_string(prompt.size()) + " tokens in a context of " +
            std::to_string(session.n_ctx) + ": shorten it, or raise n_ctx");
    }
}

void answer::generate() {
    prefill();
    while (true) {
        const pmpd_sampled sampled = sample();
        if (session.is_cancelled) {
            throw pmpd_failure(PMPD_CANCELLED, "the answer was cancelled");
        }
        bool is_refused = false;
        if (stop_text.add(sampled, [&](const pmpd_sampled & certain) { return !(is_refused = !give(certain)); })) {
            if (is_refused) {
                throw pmpd_failure(PMPD_CANCELLED, "the callback ended the answer");
            }
            return;
        }
        step(sampled.id);
    }
}

void answer::prefill() {
    const double  start     = now_seconds();
    const int32_t precision = session.plan.prefill;
    const int32_t n_reused  = session.reuse(prompt);

    session.progress                         = {};
    session.progress.stats.prompt_tokens     = (int32_t) prompt.size();
    session.progress.stats.reused_tokens     = n_reused;
    session.progress.stats.prefill_precision = precision;

    session.evaluate(prompt.data() + n_reused, (int32_t) prompt.size() - n_reused, precision, true);
    session.plan.schedule.start(session.ctx.get());
    session.progress.stats.prefill_seconds = now_seconds() - start;
}

pmpd_sampled answer::sample() {
    const double  start = now_seconds();
    const int32_t token = llama_sampler_sample(sampler.get(), session.ctx.get(), -1);
    pmpd_stats  & stats = session.progress.stats;
    double      & sum   = n_tokens == 0 ? stats.prefill_seconds : stats.decode_seconds;
    ++n_tokens;
    count_token(session.precisions.back());
    pmpd_sampled sampled = describe(token);
    sum += now_seconds() - start;
    return sampled;
}

void answer::count_token(int32_t precision) {
    pmpd_progress & progress = session.progress;
    if (n_tokens > 1) {
        progress.stats.decode_steps += 1;
        progress.stats.n_switches   += precision != progress.last_token;
        progress.sum_bits           += precision;
        progress.sum_bpw            += session.manifest->bpw(session.manifest->level(precision));
    }
    progress.last_token = precision;
}

void answer::step(int32_t token) {
    const double start = now_seconds();
    session.evaluate(&token, 1, session.plan.schedule.precision(n_tokens), false);
    session.progress.stats.decode_seconds += now_seconds() - start;
}

pmpd_sampled answer::describe(int32_t token) const {
    const float probability = pmpd_probability(session.ctx.get(), token);
    return { token, session.precisions.back(), probability, finish(token), bytes_of(token) };
}

pmpd_finish answer::finish(int32_t token) const {
    if (llama_vocab_is_eog(session.vocab(), token)) {
        return PMPD_FINISH_STOP;
    }
    if (n_tokens >= max_new_tokens) {
        return PMPD_FINISH_LENGTH;
    }
    return n_tokens >= room ? PMPD_FINISH_CONTEXT : PMPD_FINISH_NONE;
}

// nothing for control tokens
std::string answer::bytes_of(int32_t token) const {
    if (llama_vocab_is_eog(session.vocab(), token)) {
        return "";
    }
    std::string   bytes(64, '\0');
    const int32_t size = llama_token_to_piece(session.vocab(), token, &bytes[0], (int32_t) bytes.size(), 0, false);
    if (size >= 0) {
        bytes.resize(size);
        return bytes;
    }
    bytes.resize(-size);
    llama_token_to_piece(session.vocab(), token, &bytes[0], (int32_t) bytes.size(), 0, false);
    return bytes;
}

bool answer::give(const pmpd_sampled & token) const {
    const struct pmpd_token given = {
        /*.id          =*/ token.id,
        /*.precision   =*/ token.precision,
        /*.probability =*/ token.probability,
        /*.finish      =*/ token.finish,
        /*.bytes       =*/ token.bytes.c_str(),
        /*.n_bytes     =*/ (int32_t) token.bytes.size(),
    };
    return request.callback(&given, request.user_data);
}

//
// the C API
//

int32_t pmpd_generate(struct pmpd_session * session, const struct pmpd_request * request) {
    return pmpd_guard([&] {
        pmpd_check_argument(session && request, "no session or request");
        const pmpd_busy busy(*session);
        session->is_cancelled = false;
        answer(*session, *request).generate();
        return PMPD_OK;
    });
}

struct pmpd_stats pmpd_session_stats(const struct pmpd_session * session) {
    const pmpd_progress & progress = session->progress;
    struct pmpd_stats     stats    = progress.stats;
    if (stats.decode_steps > 0) {
        stats.average_bitwidth = progress.sum_bits/stats.decode_steps;
        stats.average_bpw      = progress.sum_bpw/stats.decode_steps;
    }
    return stats;
}
