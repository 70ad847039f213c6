// Adds the seconds for which it exists to a sum.

#pragma once

#include <chrono>

class pmpd_timer {
public:
    explicit pmpd_timer(double & sum) : sum(sum), start(clock::now()) {}
    ~pmpd_timer() { sum += std::chrono::duration<double>(clock::now() - start).count(); }

    pmpd_timer(const pmpd_timer &) = delete;
    pmpd_timer & operator=(const pmpd_timer &) = delete;

private:
    using clock = std::chrono::steady_clock;

    double          & sum;
    clock::time_point start;
};
