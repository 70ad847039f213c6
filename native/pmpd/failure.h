// How the C API reports failures: functions inside the library throw, and pmpd_guard() turns that into a status and
// a line of text for pmpd_error(). Nothing else crosses the boundary.

#pragma once

#include "pmpd.h"

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

struct pmpd_failure : std::runtime_error {
    pmpd_failure(pmpd_status status, const std::string & message) : std::runtime_error(message), status(status) {}

    pmpd_status status;
};

// What pmpd_error() returns in this thread; "" where nothing failed
void pmpd_error_set(const char * message);

// Run a function of the C API, which returns a status or a number
template <typename F>
int32_t pmpd_guard(F && function) {
    pmpd_error_set("");
    try {
        return function();
    } catch (const pmpd_failure & failure) {
        pmpd_error_set(failure.what());
        return failure.status;
    } catch (const std::bad_alloc &) {
        pmpd_error_set("not enough memory");
        return PMPD_MEMORY;
    } catch (const std::exception & exception) {
        pmpd_error_set(exception.what());
        return PMPD_FAILED;
    } catch (...) { // a callback's own
        pmpd_error_set("an exception of unknown type");
        return PMPD_FAILED;
    }
}

// NULL is no text
inline void pmpd_check_argument(bool condition, const std::string & message) {
    if (!condition) {
        throw pmpd_failure(PMPD_ARGUMENT, message);
    }
}
