#include "cpu.h"

#include "pmpd.h"

#include <algorithm>
#include <string>
#include <thread>

#ifdef __APPLE__
#    include <sys/sysctl.h>
#endif

#ifdef __linux__ // Android too
#    include <fstream>
#    include <sched.h>
#    include <unistd.h>
#endif

#ifdef __linux__

static const std::string TOPOLOGY = "/sys/devices/system/cpu/cpu";

static std::vector<int32_t> allowed_cores() {
    std::vector<int32_t> cores;
    cpu_set_t            set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        for (int32_t core = 0; core < CPU_SETSIZE; ++core) {
            if (CPU_ISSET(core, &set)) {
                cores.push_back(core);
            }
        }
    }
    return cores;
}

static void allow_cores(const std::vector<int32_t> & cores) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int32_t core : cores) {
        CPU_SET(core, &set);
    }
    sched_setaffinity(0, sizeof(set), &set); // a refusal costs speed only
}

// 0 where the system does not say
static int64_t read_number(int32_t core, const char * name) {
    std::ifstream file(TOPOLOGY + std::to_string(core) + "/" + name);
    int64_t       number = 0;
    return file >> number ? number : 0;
}

// whether a core with a lower number, which is allowed, is the same physical core
static bool is_second_thread(int32_t core, const std::vector<int32_t> & allowed) {
    std::ifstream file(TOPOLOGY + std::to_string(core) + "/topology/thread_siblings_list");
    int32_t       first = 0; // of "0,4" or "0-1"
    return file >> first && first < core && std::count(allowed.begin(), allowed.end(), first) > 0;
}

std::vector<int32_t> pmpd_find_fast_cores(void) {
    struct speed_of_core {
        int64_t speed;
        int32_t core;
    };
    std::vector<speed_of_core> found;
    const std::vector<int32_t> allowed = allowed_cores();
    for (const int32_t core : allowed) {
        if (!is_second_thread(core, allowed)) {
            found.push_back({ read_number(core, "cpufreq/cpuinfo_max_freq"), core });
        }
    }
    std::stable_sort(found.begin(), found.end(), [](const speed_of_core & a, const speed_of_core & b) {
        return a.speed > b.speed;
    });
    std::vector<int32_t> cores;
    for (const speed_of_core & one : found) {
        // of the slowest kind, and clearly so: equal cores of which some may clock a little higher are all fast
        const bool is_slow = one.speed == found.back().speed && one.speed*10 < found.front().speed*8;
        if (!is_slow || cores.size() < 2) { // one core alone would be slower than with a slow one beside it
            cores.push_back(one.core);
        }
    }
    return cores;
}

pmpd_pinned::pmpd_pinned(const std::vector<int32_t> & cores) {
    if (!cores.empty()) {
        before = allowed_cores();
        allow_cores(cores);
    }
}

pmpd_pinned::~pmpd_pinned() {
    if (!before.empty()) {
        allow_cores(before);
    }
}

#else

std::vector<int32_t> pmpd_find_fast_cores(void) {
    return {};
}

pmpd_pinned::pmpd_pinned(const std::vector<int32_t> & /*cores*/) {}

pmpd_pinned::~pmpd_pinned() {}

#endif

int32_t pmpd_fast_cores(void) {
#ifdef __APPLE__
    int32_t n    = 0;
    size_t  size = sizeof(n);
    if (sysctlbyname("hw.perflevel0.physicalcpu", &n, &size, nullptr, 0) == 0 && n > 0) {
        return n;
    }
#endif
    const int32_t found = (int32_t) pmpd_find_fast_cores().size();
    return found > 0 ? found : std::max((int32_t) std::thread::hardware_concurrency()/2, 1);
}
