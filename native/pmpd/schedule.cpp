#include "schedule.h"

#include "bundle.h"
#include "failure.h"
#include "log.h"

#include "llama.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <sstream>

static constexpr double       CONFIDENCE  = 0.8;
static constexpr const char * CHOICES     = "choose static, static:PRECISION@STEP,..., fixed:PRECISION or learned";
static constexpr const char * TRAIN_AGAIN = "train it again: pmpd-edge train-scheduler";

static pmpd_failure unknown(const std::string & spec) {
    return pmpd_failure(PMPD_ARGUMENT, "no scheduler '" + spec + "': " + CHOICES);
}

//
// reading
//

// digits alone, in [0, INT32_MAX]
static bool read_integer(const std::string & text, int32_t * value) {
    const bool    is_short  = !text.empty() && text.size() <= 10;
    const bool    is_number = is_short && text.find_first_not_of("0123456789") == std::string::npos;
    const int64_t number    = is_number ? std::stoll(text) : -1;
    *value = (int32_t) number;
    return is_number && number <= INT32_MAX;
}

// a decimal number, whatever the locale
static bool read_number(const std::string & text, double * value) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());
    stream >> *value;
    return !text.empty() && !stream.fail() && stream.eof() && std::isfinite(*value);
}

static std::vector<pmpd_switch> read_switches(const std::string & text) {
    std::vector<pmpd_switch> switches;
    std::istringstream       parts(text + ","); // so that an empty last part is one too
    std::string              part;
    while (std::getline(parts, part, ',')) {
        const size_t      at        = std::min(part.find('@'), part.size());
        const std::string after     = at < part.size() ? part.substr(at + 1) : "";
        int32_t           precision = 0;
        int32_t           step      = 0;
        if (!read_integer(part.substr(0, at), &precision) || !read_integer(after, &step)) {
            throw pmpd_failure(PMPD_ARGUMENT, "'" + part + "' in a schedule: write PRECISION@STEP,..., like 8@1,4@86");
        }
        switches.push_back({ step, precision });
    }
    pmpd_switches_check(switches);
    return switches;
}

//
// kinds
//

// The first switch after high_steps steps; the later switches keep their distance from it
// With no high steps the starting precision is left out. A schedule that never switches stays as it is
static void move_switches(std::vector<pmpd_switch> & switches, int32_t high_steps) {
    if (switches.size() < 2) {
        return;
    }
    const int64_t shift = (int64_t) high_steps + 1 - switches[1].step;
    for (size_t i = 1; i < switches.size(); ++i) {
        switches[i].step += shift;
    }
    if (high_steps == 0) {
        switches.erase(switches.begin());
    }
}

static pmpd_schedule make_static(const std::string & argument, const pmpd_manifest & manifest, int32_t high_steps) {
    pmpd_schedule schedule;
    schedule.switches = argument.empty() ? manifest.switches : read_switches(argument);
    if (high_steps >= 0) {
        move_switches(schedule.switches, high_steps);
    }
    for (const pmpd_switch & one : schedule.switches) {
        schedule.precisions.push_back(one.precision);
    }
    return schedule;
}

pmpd_schedule pmpd_schedule_fixed(int32_t precision) {
    pmpd_schedule schedule;
    schedule.precisions = { precision };
    schedule.switches   = { { 1, precision } };
    return schedule;
}

// The highest and the lowest precision of the bundle's schedule; of all levels where it has but one
static std::pair<int32_t, int32_t> default_pair(const pmpd_manifest & manifest) {
    std::set<int32_t> scheduled;
    for (const pmpd_switch & one : manifest.switches) {
        scheduled.insert(one.precision);
    }
    if (scheduled.size() > 1) {
        return { *scheduled.rbegin(), *scheduled.begin() };
    }
    return { manifest.levels.front().precision, manifest.levels.back().precision };
}

static std::shared_ptr<const pmpd_predictor> load_predictor(const pmpd_manifest & manifest) {
    if (manifest.predictor.empty()) {
        const std::string hint = "train one with 'pmpd-edge train-scheduler', or choose another scheduler";
        throw pmpd_failure(PMPD_BUNDLE, manifest.path + ": no predictor: " + hint);
    }
    const std::string path = manifest.file_path(manifest.predictor[0].file);
    const auto        fail = [&](const std::string & what) {
        return pmpd_failure(PMPD_BUNDLE, path + ": " + what + ": " + TRAIN_AGAIN);
    };
    char             error[512] = "";
    pmpd_log_capture log;
    pmpd_predictor * loaded = pmpd_predictor_load(path.c_str(), error, sizeof(error));
    log.drop(); // gguf's own complaints; the error says enough

    const std::shared_ptr<const pmpd_predictor> predictor(loaded, [loaded](const pmpd_predictor *) {
        pmpd_predictor_free(loaded);
    });
    if (!predictor) {
        throw fail(error);
    }
    if (pmpd_predictor_fingerprint(predictor.get()) != manifest.fingerprint()) {
        throw fail("trained for other weights than the bundle's");
    }
    if (manifest.predictor_prefill != manifest.prefill) {
        throw fail("trained on prompts at another precision than " + std::to_string(manifest.prefill));
    }
    pmpd_check_sha256(path, manifest.predictor[0].sha256);
    return predictor;
}

static int32_t find_pair(const pmpd_predictor & predictor, std::pair<int32_t, int32_t> pair) {
    std::string have;
    for (int32_t i = 0; i < pmpd_predictor_n_pairs(&predictor); ++i) {
        const int32_t high = pmpd_predictor_high(&predictor, i);
        const int32_t low  = pmpd_predictor_low(&predictor, i);
        if (high == pair.first && low == pair.second) {
            return i;
        }
        have += (i > 0 ? ", " : "") + std::to_string(high) + "-" + std::to_string(low);
    }
    const std::string name = std::to_string(pair.first) + "-" + std::to_string(pair.second);
    throw pmpd_failure(PMPD_ARGUMENT, "the predictor knows nothing of " + name + ": choose one of " + have);
}

static pmpd_schedule make_learned(const std::string & argument, const pmpd_manifest & manifest) {
    const size_t comma = std::min(argument.find(','), argument.size());
    const size_t dash  = std::min(argument.find('-'), comma);
    auto         pair  = default_pair(manifest);

    pmpd_schedule schedule;
    schedule.confidence = CONFIDENCE;
    if (comma > 0) {
        const std::string low = dash < comma ? argument.substr(dash + 1, comma - dash - 1) : "";
        if (!read_integer(argument.substr(0, dash), &pair.first) || !read_integer(low, &pair.second)) {
            throw unknown("learned:" + argument);
        }
    }
    if (comma + 1 < argument.size() && !read_number(argument.substr(comma + 1), &schedule.confidence)) {
        throw unknown("learned:" + argument);
    }
    if (!(schedule.confidence > 0.0 && schedule.confidence <= 1.0)) {
        throw pmpd_failure(PMPD_ARGUMENT, "'learned:" + argument + "': give a confidence above 0 and at most 1");
    }
    schedule.predictor  = load_predictor(manifest);
    schedule.pair       = find_pair(*schedule.predictor, pair);
    schedule.precisions = { pair.first, pair.second };
    return schedule;
}

pmpd_schedule pmpd_schedule_make(const std::string & spec, const pmpd_manifest & manifest, int32_t high_steps) {
    const size_t      colon    = std::min(spec.find(':'), spec.size());
    const std::string kind     = spec.substr(0, colon);
    const std::string argument = colon < spec.size() ? spec.substr(colon + 1) : "";
    if (high_steps >= 0 && kind != "static") {
        throw pmpd_failure(
            PMPD_ARGUMENT, "high steps have no meaning for '" + spec + "': leave them out, or choose static");
    }
    pmpd_schedule schedule;
    int32_t       precision = 0;
    if (kind == "static" && (colon == spec.size() || !argument.empty())) {
        schedule = make_static(argument, manifest, high_steps);
    } else if (kind == "fixed" && read_integer(argument, &precision)) {
        schedule = pmpd_schedule_fixed(precision);
    } else if (kind == "learned") {
        schedule = make_learned(argument, manifest);
    } else {
        throw unknown(spec);
    }
    for (const int32_t used : schedule.precisions) {
        manifest.level(used);
    }
    return schedule;
}

//
// deciding
//

// The smallest class that is enough with a probability of `confidence`; classes rise
static int32_t choose(const std::vector<float> & probabilities, double confidence) {
    double total = 0.0;
    for (size_t i = 0; i < probabilities.size(); ++i) {
        total += probabilities[i];
        if (total >= confidence) {
            return (int32_t) i;
        }
    }
    return (int32_t) probabilities.size() - 1; // rounding may keep the sum below 1
}

// The probability of each class, from what the prompt left in the KV cache
static std::vector<float> predict(const pmpd_predictor * predictor, int32_t pair, llama_context * ctx) {
    const int32_t  n_layer = llama_model_n_layer(llama_get_model(ctx));
    const int32_t  layer   = pmpd_predictor_layer(predictor) + (pmpd_predictor_layer(predictor) < 0 ? n_layer : 0);
    llama_kv_shape shape   = {};

    pmpd_log_capture log;
    const int32_t    n_tokens = llama_get_kv_seq(ctx, 0, layer, nullptr, nullptr, 0, &shape);
    if (n_tokens < 0) {
        const std::string why = log.reason("llama_get_kv_seq returned " + std::to_string(n_tokens));
        throw pmpd_failure(PMPD_BUNDLE, "no keys and values: " + why);
    }
    if (shape.n_head_kv     != pmpd_predictor_n_head_kv (predictor) ||
        shape.n_embd_head_k != pmpd_predictor_head_dim_k(predictor) ||
        shape.n_embd_head_v != pmpd_predictor_head_dim_v(predictor)) {
        const std::string what = "the predictor is for keys and values of another shape: ";
        throw pmpd_failure(PMPD_BUNDLE, what + TRAIN_AGAIN);
    }
    std::vector<float> k((size_t) n_tokens*shape.n_head_kv*shape.n_embd_head_k);
    std::vector<float> v((size_t) n_tokens*shape.n_head_kv*shape.n_embd_head_v);
    std::vector<float> probabilities(pmpd_predictor_n_classes(predictor));
    if (llama_get_kv_seq(ctx, 0, layer, k.data(), v.data(), n_tokens, nullptr) != n_tokens) {
        throw pmpd_failure(PMPD_FAILED, "no keys and values: " + log.reason("llama_get_kv_seq failed"));
    }
    const int32_t status = pmpd_predictor_run(predictor, pair, k.data(), v.data(), n_tokens, probabilities.data());
    if (status == PMPD_PREDICTOR_MEMORY) {
        throw std::bad_alloc();
    }
    if (status != PMPD_PREDICTOR_OK) {
        throw pmpd_failure(
            PMPD_FAILED, "the predictor cannot predict (K or V is not finite): choose another scheduler");
    }
    return probabilities;
}

void pmpd_schedule::start(llama_context * ctx) {
    if (!predictor) {
        return;
    }
    const int32_t chosen = choose(predict(predictor.get(), pair, ctx), confidence);
    const double  share  = pmpd_predictor_classes(predictor.get())[chosen];
    const int32_t n_max  = pmpd_predictor_max_new_tokens(predictor.get());
    const int64_t steps  = (int64_t) std::nearbyint(share*n_max); // to even, as in Python

    switches = { { 1, precisions[0] } };
    if (share < 1.0) {
        switches.push_back({ steps + 1, precisions[1] });
    }
}

int32_t pmpd_schedule::precision(int64_t step) const {
    int32_t precision = switches[0].precision;
    for (const pmpd_switch & one : switches) {
        precision = one.step <= step ? one.precision : precision;
    }
    return precision;
}
