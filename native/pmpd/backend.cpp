#include "backend.h"

#include "failure.h"
#include "log.h"

#include "ggml-backend.h"
#include "llama.h"

static bool has_backend() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) != nullptr;
}

void pmpd_backend_check(void) {
    pmpd_log_install();
    static const bool once = (llama_backend_init(), true);
    if (!once || !has_backend()) {
        throw pmpd_failure(PMPD_FAILED, "no backend to compute with: call pmpd_load_backends() first");
    }
}

int32_t pmpd_load_backends(const char * directory) {
    return pmpd_guard([&] {
        pmpd_log_install();
        pmpd_log_capture log;
        if (!has_backend()) { // linked, or loaded by an earlier call
            ggml_backend_load_all_from_path(directory);
        }
        if (!has_backend()) {
            const std::string where = directory ? directory : "the program's directory";
            const std::string why   = log.reason("nothing like libggml-cpu there");
            throw pmpd_failure(PMPD_FAILED, where + ": no backend that this CPU can use (" + why + ")");
        }
        return PMPD_OK;
    });
}
