// libpmpd's planner alone, for tests/native/test_pmpd_planner.py. Reads the costs (step, begin, draft, verifications of
// as many drafts as are measured) from the arguments, and rounds from standard input, one a line: drafts, those kept,
// whether one was rejected, tokens, seconds of drafting, seconds of verifying. Prints the break-even and the gain of
// all drafts, and then the number of drafts before each round.

#include "planner.h"

#include <cstdio>
#include <cstdlib>

int main(int argc, char ** argv) {
    std::vector<double> given;
    for (int i = 1; i < argc; ++i) {
        given.push_back(std::strtod(argv[i], nullptr));
    }
    const pmpd_costs costs(given.at(0), given.at(1), given.at(2), { given.begin() + 3, given.end() });
    std::printf("%.17g %.17g\n", costs.break_even(), costs.gain(costs.most(), 1.0));

    pmpd_planner planner(costs);
    pmpd_round   done;
    int          rejected = 0;
    std::printf("%d\n", (int) planner.next());
    while (std::scanf("%d %d %d %d %lf %lf", &done.drafted, &done.kept, &rejected, &done.tokens, &done.drafting_seconds,
                      &done.verifying_seconds) == 6) {
        done.is_rejected = rejected != 0;
        planner.record(done);
        std::printf("%d\n", (int) planner.next());
    }
    return 0;
}
