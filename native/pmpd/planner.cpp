#include "planner.h"

#include <algorithm>
#include <cmath>

static constexpr double  LEAST_GAIN    = 1.02;  // as many times as fast as without drafts, or they are left out
static constexpr double  MOST_LOSS     = 0.02;  // of the time without drafts
static constexpr double  GRACE         = 2.0;   // steps that may be lost beyond that, to begin with
static constexpr int32_t PROBE_EVERY   = 48;    // rounds: one of the other kind, to see whether it has changed
static constexpr double  ACCEPTANCE    = 0.8;   // what is expected before anything is known
static constexpr double  TRIALS        = 4.0;   // and how firmly
static constexpr double  MEMORY        = 0.98;  // share that a draft leaves of what is known from those before
static constexpr double  WEIGHT        = 0.1;   // of a new time against those before it
static constexpr double  STALL         = 2.0;   // times the expected: somebody else's doing
static constexpr double  LEDGER_MEMORY = 0.995; // share that a round leaves of the time lost and gained before it

pmpd_costs::pmpd_costs(double step, double begin, double draft, const std::vector<double> & measured)
    : step(step), begin(begin), draft(draft), verify({ step }) {
    for (size_t i = 0; i < measured.size(); ++i) {
        const int32_t from = (int32_t) verify.size() - 1;
        const double  low  = verify.back();
        for (int32_t drafts = from + 1; drafts <= PMPD_MEASURED[i]; ++drafts) {
            verify.push_back(low + (measured[i] - low)*(drafts - from)/(PMPD_MEASURED[i] - from));
        }
    }
}

int32_t pmpd_costs::most() const {
    return (int32_t) verify.size() - 1;
}

// tokens that a round gives on average
static double expected_tokens(int32_t drafts, double acceptance) {
    return acceptance >= 1.0 ? drafts + 1.0 : (1.0 - std::pow(acceptance, drafts + 1))/(1.0 - acceptance);
}

double pmpd_costs::gain(int32_t drafts, double acceptance) const {
    const double seconds = begin + drafts*draft + verify[drafts];
    return expected_tokens(drafts, acceptance)*step/seconds;
}

int32_t pmpd_costs::best(double acceptance) const {
    int32_t best = 1;
    for (int32_t drafts = 2; drafts <= most(); ++drafts) {
        best = gain(drafts, acceptance) > gain(best, acceptance) ? drafts : best;
    }
    return gain(best, acceptance) >= LEAST_GAIN ? best : 0;
}

double pmpd_costs::break_even() const {
    int32_t percent = 0;
    while (percent <= 100 && best(percent/100.0) == 0) {
        ++percent;
    }
    return percent/100.0;
}

static double correction(double seconds, double expected) {
    return 1.0 + WEIGHT*(std::min(seconds/expected, STALL) - 1.0);
}

void pmpd_costs::update(const pmpd_round & done) {
    if (done.drafted == 0) {
        step *= correction(done.verifying_seconds, step);
        verify[0] = step;
    } else if (done.drafted <= most()) {
        const double factor = correction(done.drafting_seconds, begin + done.drafted*draft);
        begin *= factor;
        draft *= factor;
        verify[done.drafted] *= correction(done.verifying_seconds, verify[done.drafted]);
    }
}

pmpd_planner::pmpd_planner(pmpd_costs costs) : costs(std::move(costs)), trials(TRIALS), kept(ACCEPTANCE*TRIALS) {
    decide();
}

void pmpd_planner::decide() {
    best    = costs.best(kept/trials);
    can_pay = costs.best(1.0) > 0;
}

int32_t pmpd_planner::next() const {
    if (lost > MOST_LOSS*plain + GRACE*costs.step) {
        return 0;
    }
    if (since_probe >= PROBE_EVERY) {
        return best > 0 ? 0 : (int32_t) can_pay;
    }
    return best;
}

void pmpd_planner::record(const pmpd_round & done) {
    since_probe = (done.drafted > 0) == (best > 0) ? since_probe + 1 : 0;
    costs.update(done);
    plain = LEDGER_MEMORY*plain + done.tokens*costs.step;
    lost *= LEDGER_MEMORY;
    if (done.drafted > 0) {
        const int32_t judged = done.kept + done.is_rejected;
        const double  memory = std::pow(MEMORY, judged);
        lost += done.seconds() - done.tokens*costs.step;
        trials = memory*trials + judged;
        kept   = memory*kept + done.kept;
    }
    decide();
}
