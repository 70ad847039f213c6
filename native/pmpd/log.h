// Where the messages of llama.cpp go: to the caller's log, or into the reason of a failure.
//
// llama.cpp has one log for the whole process, so what is set here is the only state that the library shares.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

// Take over llama.cpp's log; what was set before it gets warnings and errors on. Later calls do nothing
void pmpd_log_install(void);

// Holds back the warnings and errors that llama.cpp logs in this thread while it exists. In the end they are logged,
// but for those that have become the reason of a failure
class pmpd_log_capture {
public:
    pmpd_log_capture();
    ~pmpd_log_capture();

    pmpd_log_capture(const pmpd_log_capture &) = delete;
    pmpd_log_capture & operator=(const pmpd_log_capture &) = delete;

    void add(int32_t level, const char * text);

    // What went wrong: the first error (those after it follow from it), else the first warning
    std::string reason(const std::string & otherwise);

    // Forget what has come so far: it says nothing new
    void drop();

private:
    struct message {
        int32_t     level;
        std::string text;
    };

    pmpd_log_capture *   outer;
    std::vector<message> messages;
};
