#include "rounds.h"

#include "timer.h"

#include <algorithm>

pmpd_rounds::pmpd_rounds(pmpd_session & session, const struct pmpd_sampling & sampling, give_function give)
    : session(session), give(std::move(give)), sampler(sampling, session.vocab()), random(sampling.seed) {}

bool pmpd_rounds::first() {
    {
        const pmpd_timer timer(session.progress.stats.prefill_seconds);
        token = sampler.sample(session.ctx.get(), -1);
    }
    ++n_given;
    return give(token, -1, false);
}

bool pmpd_rounds::next() {
    const int32_t            precision = session.plan.schedule.precision(n_given);
    pmpd_round               started;
    const std::vector<draft> drafts = make_drafts(room(precision), started);
    pmpd_attempt             attempt(session);
    const int32_t            n_rows = verify(drafts, precision, started);

    session.progress.rounds.push_back(started);
    pmpd_round & done    = session.progress.rounds.back();
    bool         goes_on = true;
    bool         stands  = true;
    for (int32_t row = 0; row < n_rows && goes_on && stands; ++row) {
        if (row > 0 && session.plan.schedule.precision(n_given) != precision) {
            break; // the next round computes it at another level
        }
        attempt.n_kept += 1;
        const draft * drafted = row < (int32_t) drafts.size() ? &drafts[row] : nullptr;
        token  = judge(drafted, row, done);
        stands = drafted && token == drafted->token;
        ++done.tokens;
        ++n_given;
        goes_on = give(token, row, stands);
    }
    session.plan.drafter.record(precision, done);
    return goes_on;
}

// tokens to draft, as far as the context and one evaluation have room for them
int32_t pmpd_rounds::room(int32_t precision) const {
    const int32_t room = std::min(session.n_ctx - (int32_t) session.tokens.size(), session.n_batch) - 1;
    return std::max(std::min(session.plan.drafter.count(precision), room), 0);
}

// Go on at the low level, and take it back; ends early where the answer would
std::vector<pmpd_rounds::draft> pmpd_rounds::make_drafts(int32_t count, pmpd_round & done) {
    std::vector<draft> drafts;
    if (count == 0) {
        return drafts;
    }
    const pmpd_timer   timer(done.drafting_seconds);
    const pmpd_attempt attempt(session);
    pmpd_sampler       ahead = sampler.fork();
    int32_t            last  = token;
    while ((int32_t) drafts.size() < count && !ends(last)) {
        session.check_cancelled();
        session.decode(&last, 1, session.plan.drafter.precision);
        drafts.push_back(draw(ahead));
        last = drafts.back().token;
    }
    done.drafted = (int32_t) drafts.size();
    return drafts;
}

pmpd_rounds::draft pmpd_rounds::draw(pmpd_sampler & ahead) {
    if (ahead.is_greedy) {
        return { ahead.sample(session.ctx.get(), 0), {} };
    }
    draft drawn = { 0, ahead.choose(session.ctx.get(), 0) };
    drawn.token = drawn.choice.draw(random);
    ahead.accept(drawn.token);
    return drawn;
}

// Evaluate the last token and the drafts after it at the verifier's level; returns the number of rows whose logits are
// of use: none after a token that ends the answer
int32_t pmpd_rounds::verify(const std::vector<draft> & drafts, int32_t precision, pmpd_round & done) {
    const pmpd_timer     timer(done.verifying_seconds);
    std::vector<int32_t> rows = { token };
    for (const draft & one : drafts) {
        if (!ends(one.token)) { // only the last one may
            rows.push_back(one.token);
        }
    }
    session.decode(rows.data(), (int32_t) rows.size(), precision);
    return (int32_t) rows.size();
}

// the verifier's next token: the draft, or its own
int32_t pmpd_rounds::judge(const draft * drafted, int32_t row, pmpd_round & done) {
    const pmpd_timer timer(done.verifying_seconds);
    llama_context  * ctx = session.ctx.get();
    int32_t          chosen;
    if (drafted && !sampler.is_greedy) {
        chosen = pmpd_judge(drafted->token, drafted->choice, sampler.choose(ctx, row), random);
        sampler.accept(chosen);
    } else {
        chosen = sampler.sample(ctx, row);
    }
    if (drafted) {
        done.kept       += chosen == drafted->token;
        done.is_rejected = chosen != drafted->token;
    }
    return chosen;
}

// whether the model ends its answer with this token
bool pmpd_rounds::ends(int32_t id) const {
    return llama_vocab_is_eog(session.vocab(), id);
}
