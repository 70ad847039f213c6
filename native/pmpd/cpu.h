// Which cores to compute on. A slow core, or a second thread on the same one, holds the others up at every barrier.

#pragma once

#include <cstdint>
#include <vector>

// The cores that this process may use, without those of the slowest kind and without second threads of a core, from the
// fastest on; empty where the system does not say (then there is no pinning either)
std::vector<int32_t> pmpd_find_fast_cores(void);

// Binds the calling thread to cores while it exists, and with it the compute threads that it starts; does nothing where
// there are no cores, or the system has no such call
class pmpd_pinned {
public:
    explicit pmpd_pinned(const std::vector<int32_t> & cores);
    ~pmpd_pinned();

    pmpd_pinned(const pmpd_pinned &) = delete;
    pmpd_pinned & operator=(const pmpd_pinned &) = delete;

private:
    std::vector<int32_t> before;
};
