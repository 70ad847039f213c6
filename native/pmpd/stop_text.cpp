#include "stop_text.h"

#include <algorithm>

pmpd_stop_text::pmpd_stop_text(std::vector<std::string> texts) : texts(std::move(texts)) {
    this->texts.erase(std::remove(this->texts.begin(), this->texts.end(), ""), this->texts.end());
}

bool pmpd_stop_text::add(pmpd_sampled token, const std::function<bool(const pmpd_sampled &)> & give) {
    held.push_back(std::move(token));
    std::string text;
    for (const pmpd_sampled & one : held) {
        text += one.bytes;
    }
    size_t found = std::string::npos;
    for (const std::string & stop : texts) {
        found = std::min(found, text.find(stop));
    }
    if (found != std::string::npos) {
        held.back().finish = PMPD_FINISH_STOP;
        cut(found);
    }
    const bool is_last = held.back().finish != PMPD_FINISH_NONE;
    size_t     certain = is_last ? text.size() : text.size() - doubtful(text);
    while (!held.empty() && (is_last || held.front().bytes.size() <= certain)) {
        const pmpd_sampled next = std::move(held.front());
        held.pop_front();
        certain -= std::min(certain, next.bytes.size());
        if (!give(next)) {
            return true;
        }
    }
    return is_last;
}

// length of the longest end of the text that begins a stop text
size_t pmpd_stop_text::doubtful(const std::string & text) const {
    size_t longest = 0;
    for (const std::string & stop : texts) {
        for (size_t n = std::min(stop.size() - 1, text.size()); n > longest; --n) {
            if (text.compare(text.size() - n, n, stop, 0, n) == 0) {
                longest = n;
            }
        }
    }
    return longest;
}

void pmpd_stop_text::cut(size_t length) {
    for (pmpd_sampled & one : held) {
        one.bytes.resize(std::min(length, one.bytes.size()));
        length -= one.bytes.size();
    }
}
