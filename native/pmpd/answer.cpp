// Generating an answer: prefill, then one token after the other with its text, until there is a reason to end.
// The counterpart of pmpd_edge/stream.py and of Pmpd.generate().

#include "failure.h"
#include "rounds.h"
#include "sampling.h"
#include "session.h"
#include "stop_text.h"
#include "timer.h"

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
    pmpd_rounds                 rounds;
    pmpd_stop_text              stop_text;
    int32_t                     n_tokens = 0; // sampled so far

    void         check_prompt() const;
    void         prefill();
    bool         take(int32_t token, int32_t row, bool drafted);
    void         count_token(int32_t precision);
    pmpd_sampled describe(int32_t token, int32_t row, bool drafted) const;
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
      rounds(session, request.sampling, [this](int32_t token, int32_t row, bool drafted) {
          return take(token, row, drafted);
      }),
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
    bool goes_on = rounds.first();
    while (goes_on) {
        goes_on = rounds.next();
    }
}

void answer::prefill() {
    const int32_t precision = session.plan.prefill;
    const int32_t n_reused  = session.reuse(prompt);

    session.progress                         = {};
    session.progress.has_drafts              = session.plan.drafter.precision > 0;
    session.progress.stats.prompt_tokens     = (int32_t) prompt.size();
    session.progress.stats.reused_tokens     = n_reused;
    session.progress.stats.prefill_precision = precision;

    session.plan.drafter.prepare(session);
    const pmpd_timer timer(session.progress.stats.prefill_seconds);
    session.prefill(prompt.data() + n_reused, (int32_t) prompt.size() - n_reused, precision);
    session.plan.schedule.start(session.ctx.get());
}

// Give a token that was sampled, or hold it back; returns whether the answer goes on
bool answer::take(int32_t token, int32_t row, bool drafted) {
    pmpd_sampled sampled;
    {
        pmpd_stats     & stats = session.progress.stats;
        const pmpd_timer timer(n_tokens == 0 ? stats.prefill_seconds : stats.decode_seconds);
        ++n_tokens;
        count_token(session.precisions.back());
        sampled = describe(token, row, drafted);
    }
    session.check_cancelled();
    bool is_refused = false;
    if (stop_text.add(sampled, [&](const pmpd_sampled & certain) { return !(is_refused = !give(certain)); })) {
        if (is_refused) {
            throw pmpd_failure(PMPD_CANCELLED, "the callback ended the answer");
        }
        return false;
    }
    return true;
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

pmpd_sampled answer::describe(int32_t token, int32_t row, bool drafted) const {
    const float probability = pmpd_probability(session.ctx.get(), row, token);
    return { token, session.precisions.back(), probability, drafted, finish(token), bytes_of(token) };
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
        /*.drafted     =*/ token.drafted,
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

static void add_rounds(struct pmpd_stats & stats, const std::vector<pmpd_round> & rounds) {
    int32_t n_tokens = 0; // of verifications
    for (const pmpd_round & done : rounds) {
        stats.drafted_tokens    += done.drafted;
        stats.kept_tokens       += done.kept;
        stats.verifications     += done.drafted > 0;
        stats.drafting_seconds  += done.drafting_seconds;
        stats.verifying_seconds += done.verifying_seconds;
        n_tokens                += done.drafted > 0 ? done.tokens : 0;
    }
    if (stats.verifications > 0) {
        stats.tokens_per_verification = (double) n_tokens/stats.verifications;
    }
}

struct pmpd_stats pmpd_session_stats(const struct pmpd_session * session) {
    const pmpd_progress & progress = session->progress;
    struct pmpd_stats     stats    = progress.stats;
    for (const pmpd_round & done : progress.rounds) {
        stats.decode_seconds += done.seconds();
    }
    if (progress.has_drafts) {
        add_rounds(stats, progress.rounds);
    }
    if (stats.decode_steps > 0) {
        stats.average_bitwidth = progress.sum_bits/stats.decode_steps;
        stats.average_bpw      = progress.sum_bpw/stats.decode_steps;
    }
    return stats;
}
