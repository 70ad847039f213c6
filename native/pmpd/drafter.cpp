#include "drafter.h"

#include "failure.h"
#include "session.h"
#include "timer.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>
#include <random>
#include <vector>

static constexpr int32_t REPETITIONS = 2; // the quicker one counts
static constexpr int32_t STEPS       = 3;

//
// measuring
//

// Seconds of evaluations after each other, the switch in the first; their rows are given up
static std::vector<double> time_rows(pmpd_session & session, int32_t precision, int32_t n_rows, int32_t n_times) {
    // different tokens: those of a kind would go to the same few experts of a mixture
    std::mt19937         random(0);
    std::vector<int32_t> rows(n_rows);
    for (int32_t & token : rows) {
        token = (int32_t) (random() % (uint32_t) llama_vocab_n_tokens(session.vocab()));
    }
    const pmpd_attempt  attempt(session);
    std::vector<double> seconds(n_times, 0.0);
    for (double & one : seconds) {
        session.check_cancelled();
        const pmpd_timer timer(one);
        session.decode(rows.data(), n_rows, precision);
        llama_synchronize(session.ctx.get()); // waits for a GPU
    }
    return seconds;
}

// Takes in times of which the least counts
static void lower(double & least, const std::vector<double> & seconds, size_t from = 0) {
    least = std::min(least, *std::min_element(seconds.begin() + from, seconds.end()));
}

// Times rounds as they will be: drafts at one level, their verification at the other, and steps without drafts
// Nothing where the context has no room to try
static std::optional<pmpd_costs> measure(pmpd_session & session, int32_t draft, int32_t verifier) {
    const int32_t room = std::min(session.n_ctx - (int32_t) session.tokens.size(), session.n_batch);
    if (room < STEPS + 1) {
        return std::nullopt;
    }
    const auto          end = std::lower_bound(std::begin(PMPD_MEASURED), std::end(PMPD_MEASURED), room);
    std::vector<double> verify(end - std::begin(PMPD_MEASURED), HUGE_VAL); // as many drafts as fit, and one row more
    double              step  = HUGE_VAL;
    double              first = HUGE_VAL;
    double              other = HUGE_VAL;
    for (int32_t i = 0; i < REPETITIONS; ++i) {
        for (size_t j = 0; j < verify.size(); ++j) {
            const std::vector<double> drafts = time_rows(session, draft, 1, STEPS);
            first = std::min(first, drafts.front());
            lower(other, drafts, 1);
            lower(verify[j], time_rows(session, verifier, PMPD_MEASURED[j] + 1, 1));
        }
        lower(step, time_rows(session, verifier, 1, STEPS), 1); // the first one builds the graph
    }
    return pmpd_costs(step, std::max(first - other, 0.0), other, verify);
}

//
// the drafter
//

pmpd_drafter::pmpd_drafter(int32_t precision, int32_t draft_tokens)
    : precision(precision), draft_tokens(draft_tokens) {}

void pmpd_drafter::keep(const pmpd_drafter & other) {
    planners = other.planners;
}

bool pmpd_drafter::is_planned(int32_t verifier) const {
    return precision > 0 && draft_tokens == 0 && verifier > precision;
}

void pmpd_drafter::prepare(pmpd_session & session) {
    for (const int32_t verifier : session.plan.schedule.precisions) {
        if (!is_planned(verifier) || planners.count({ precision, verifier }) > 0) {
            continue;
        }
        if (const std::optional<pmpd_costs> costs = measure(session, precision, verifier)) {
            planners.emplace(std::pair(precision, verifier), pmpd_planner(*costs));
        }
    }
}

int32_t pmpd_drafter::count(int32_t verifier) const {
    if (!is_planned(verifier)) {
        return precision > 0 && verifier > precision ? draft_tokens : 0;
    }
    const auto planner = planners.find({ precision, verifier });
    return planner == planners.end() ? 0 : planner->second.next();
}

void pmpd_drafter::record(int32_t verifier, const pmpd_round & done) {
    const auto planner = planners.find({ precision, verifier });
    if (is_planned(verifier) && planner != planners.end()) {
        planner->second.record(done);
    }
}

struct pmpd_forecast pmpd_drafter::forecast(int32_t verifier) const {
    const auto planner = planners.find({ precision, verifier });
    if (!is_planned(verifier) || planner == planners.end()) {
        return {};
    }
    const pmpd_costs & costs = planner->second.known_costs();
    const int32_t      most  = costs.best(1.0);
    return { costs.break_even(), most > 0 ? costs.gain(most, 1.0) : 1.0, costs.draft/costs.step };
}

//
// the C API
//

int32_t pmpd_session_forecast(struct pmpd_session * session, struct pmpd_forecast * forecast) {
    return pmpd_guard([&] {
        pmpd_check_argument(session && forecast, "no session, or nowhere to put the forecast");
        const pmpd_busy busy(*session);
        session->is_cancelled = false;
        session->plan.drafter.prepare(*session);
        const std::vector<int32_t> & verifiers = session->plan.schedule.precisions;
        *forecast = session->plan.drafter.forecast(*std::max_element(verifiers.begin(), verifiers.end()));
        return PMPD_OK;
    });
}
