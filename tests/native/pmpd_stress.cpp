// libpmpd with sessions in threads of their own, some that are cancelled, and faults: for sanitizers, which look for
// what tests of results do not see. Prints what went wrong, and returns 1 then. (scripts/check_native.sh runs it.)
//
//     pmpd-stress BUNDLE

#include "pmpd.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

static std::atomic<int> n_failed{ 0 };

static void expect(bool condition, const char * what) {
    if (!condition) {
        std::fprintf(stderr, "not so: %s (%s)\n", what, pmpd_error());
        ++n_failed;
    }
}

static std::vector<int32_t> prompt_of(pmpd_session * session, const std::string & text) {
    const pmpd_message   messages[] = { { "user", text.c_str() } };
    std::vector<int32_t> tokens(pmpd_apply_chat_template(session, messages, 1, nullptr, 0));
    pmpd_apply_chat_template(session, messages, 1, tokens.data(), (int32_t) tokens.size());
    return tokens;
}

static std::vector<int32_t> generate(pmpd_session * session, const std::vector<int32_t> & prompt, float temperature, int32_t * status) {
    std::vector<int32_t> found;
    const char *         stop[]  = { "</s>", "never there" };
    pmpd_request         request = {};
    request.tokens               = prompt.data();
    request.n_tokens             = (int32_t) prompt.size();
    request.max_new_tokens       = 16;
    request.sampling             = pmpd_default_sampling();
    request.sampling.temperature = temperature;
    request.sampling.seed        = 7;
    request.stop                 = stop;
    request.n_stop               = 2;
    request.user_data            = &found;
    request.callback             = [](const pmpd_token * token, void * data) {
        ((std::vector<int32_t> *) data)->push_back(token->id);
        return true;
    };
    *status = pmpd_generate(session, &request);
    return found;
}

static void converse(const pmpd_bundle * bundle, const char * method, const char * scheduler) {
    pmpd_options options = pmpd_default_options();
    options.method       = method;
    options.scheduler    = scheduler;
    options.draft_tokens = 3;
    options.n_threads    = 2;
    options.pin_threads  = true;

    pmpd_session * session = nullptr;
    int32_t        status  = 0;
    expect(pmpd_session_open(bundle, &options, nullptr, nullptr, &session) == PMPD_OK, "a session opens");
    for (const char * text : { "Ein Hund.", "Eine Frau spielt Gitarre. 😀", "Ein Hund." }) {
        const std::vector<int32_t> prompt = prompt_of(session, text);
        for (const float temperature : { 0.0f, 0.8f }) {
            pmpd_session_clear(session);
            const std::vector<int32_t> first = generate(session, prompt, temperature, &status);
            expect(status == PMPD_OK && !first.empty(), "an answer is generated");
            expect(generate(session, prompt, temperature, &status) == first, "the same comes again from a kept prefix");
        }
    }
    options.method       = "lossless";
    options.draft_tokens = 0;
    expect(pmpd_session_configure(session, &options) == PMPD_OK, "another method");
    pmpd_forecast forecast = {};
    expect(pmpd_session_forecast(session, &forecast) == PMPD_OK && forecast.draft > 0.0, "drafting is measured");
    expect(!generate(session, prompt_of(session, "Ein Hund."), 0.0f, &status).empty(), "as many drafts as pay");
    options.method = "none";
    expect(pmpd_session_configure(session, &options) == PMPD_ARGUMENT, "no such method");
    pmpd_session_free(session);
}

static void cancel_often(const pmpd_bundle * bundle, const char * method) {
    pmpd_options options = pmpd_default_options();
    options.method       = method;
    options.n_threads    = 1;
    options.n_ctx        = 2048;

    pmpd_session * session = nullptr;
    expect(pmpd_session_open(bundle, &options, nullptr, nullptr, &session) == PMPD_OK, "a session opens");
    const std::vector<int32_t> prompt(2000, 400);
    for (int i = 0; i < 8; ++i) {
        std::atomic<bool> is_done{ false };
        std::thread       other([&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(20*i));
            while (!is_done) { // the answer may not have begun
                pmpd_session_cancel(session);
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
        });
        int32_t status = 0;
        generate(session, prompt, 0.0f, &status);
        is_done = true;
        other.join();
        expect(status == PMPD_OK || status == PMPD_CANCELLED, "it ends, or is cancelled");
    }
    int32_t status = 0;
    expect(generate(session, std::vector<int32_t>(2048, 5), 0.0f, &status).empty() && status == PMPD_CONTEXT_FULL, "no room");
    pmpd_session_free(session);
}

int main(int argc, char ** argv) {
    pmpd_bundle * bundle = nullptr;
    if (argc != 2 || pmpd_load_backends(nullptr) != PMPD_OK || pmpd_bundle_open(argv[1], &bundle) != PMPD_OK) {
        std::fprintf(stderr, "usage: pmpd-stress BUNDLE (%s)\n", pmpd_error());
        return 2;
    }
    expect(pmpd_bundle_verify(bundle, nullptr, nullptr) == PMPD_OK, "the bundle is whole");
    pmpd_options options = pmpd_default_options();
    uint64_t     n_bytes = 0;
    expect(pmpd_estimate_memory(bundle, &options, &n_bytes) == PMPD_OK && n_bytes > 0, "memory is estimated");

    std::vector<std::thread> threads;
    threads.emplace_back([&] { converse(bundle, "pmpd", nullptr); });
    threads.emplace_back([&] { converse(bundle, "lossless", "static:8@1,2@3,4@5"); });
    threads.emplace_back([&] { cancel_often(bundle, "pmpd"); });
    threads.emplace_back([&] { cancel_often(bundle, "lossless"); });
    for (std::thread & one : threads) {
        one.join();
    }
    pmpd_bundle_free(bundle);
    return n_failed > 0;
}
