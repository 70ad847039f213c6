#include "log.h"

#include "failure.h"

#include "ggml.h"
#include "llama.h"

#include <algorithm>
#include <mutex>

namespace {

struct log_target {
    ggml_log_callback callback  = nullptr;
    void *            user_data = nullptr;
};

// the caller's, whose levels are plain numbers
struct log_function {
    void (*log)(int32_t, const char *, void *) = nullptr;
    void * user_data                           = nullptr;
};

} // namespace

static log_target     target; // set before other threads use the library
static log_function   function;
static std::once_flag installed;

static thread_local pmpd_log_capture * innermost;
static thread_local ggml_log_level     last_level; // of what a message of level CONT continues

static void pass_on(ggml_log_level level, const char * text) {
    if (innermost) {
        innermost->add(level, text);
    } else if (target.callback) {
        target.callback(level, text, target.user_data);
    }
}

static void on_log(ggml_log_level level, const char * text, void * /*user_data*/) {
    last_level = level == GGML_LOG_LEVEL_CONT ? last_level : level;
    if (last_level == GGML_LOG_LEVEL_WARN || last_level == GGML_LOG_LEVEL_ERROR) {
        pass_on(last_level, text);
    }
}

void pmpd_log_install(void) {
    std::call_once(installed, [] {
        llama_log_get(&target.callback, &target.user_data);
        llama_log_set(on_log, nullptr);
    });
}

void pmpd_log_set(void (*log)(int32_t level, const char * text, void * user_data), void * user_data) {
    pmpd_log_install();
    function        = { log, user_data };
    target.callback = nullptr;
    if (log) {
        target.callback = [](ggml_log_level level, const char * text, void *) {
            function.log((int32_t) level, text, function.user_data);
        };
    }
}

pmpd_log_capture::pmpd_log_capture() : outer(innermost) {
    innermost = this;
}

pmpd_log_capture::~pmpd_log_capture() {
    innermost = outer;
    for (const message & one : messages) {
        pass_on((ggml_log_level) one.level, one.text.c_str());
    }
}

void pmpd_log_capture::add(int32_t level, const char * text) {
    messages.push_back({ level, text });
}

void pmpd_log_capture::drop() {
    messages.clear();
}

std::string pmpd_log_capture::reason(const std::string & otherwise) {
    std::string found = otherwise;
    for (const ggml_log_level level : { GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR }) { // the second one counts more
        const auto first = std::find_if(messages.begin(), messages.end(), [&](const message & one) {
            return one.level == level;
        });
        found = first == messages.end() ? found : first->text;
    }
    const size_t name = messages.empty() ? std::string::npos : found.find(": "); // of the function that logs
    drop();
    found = name == std::string::npos ? found : found.substr(name + 2);
    return found.substr(0, found.find_last_not_of(" \n") + 1);
}
