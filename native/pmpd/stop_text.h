// Cuts an answer at the first stop text, and holds back tokens that may turn out to be part of one. It works on bytes:
// a character may be spread over tokens, and a stop text may begin within one.

#pragma once

#include "pmpd.h"

#include <deque>
#include <functional>
#include <string>
#include <vector>

// A token that was sampled, with its bytes
struct pmpd_sampled {
    int32_t     id;
    int32_t     precision;
    float       probability;
    bool        drafted;
    pmpd_finish finish; // of the last one
    std::string bytes;
};

class pmpd_stop_text {
public:
    explicit pmpd_stop_text(std::vector<std::string> texts); // empty ones count as none

    // Take a token, and give all that are certain now; where a stop text is complete, the last one has a `finish`
    // Returns whether the answer has ended; stops giving, and returns true, where `give` returns false
    bool add(pmpd_sampled token, const std::function<bool(const pmpd_sampled &)> & give);

private:
    std::vector<std::string> texts;
    std::deque<pmpd_sampled> held;

    size_t doubtful(const std::string & text) const;
    void   cut     (size_t length);
};
