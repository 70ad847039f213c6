#include "manifest.h"

#include "failure.h"
#include "sha256.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <set>

using json = nlohmann::json;

static constexpr const char * MANIFEST = "pmpd.json";
static constexpr const char * FORMAT   = "pmpd-bundle";
static constexpr int          VERSION  = 1;

const char * const PMPD_CONVERT_AGAIN = "get the bundle again, or make it with 'pmpd-edge convert'";

//
// values
//

static pmpd_failure damaged(const std::string & what) {
    return pmpd_failure(PMPD_BUNDLE, "damaged (" + what + ")");
}

// for messages; what is nested may be nested deeply, and dump() recurses
static std::string shown(const json & value) {
    if (value.is_structured()) {
        return value.type_name();
    }
    return value.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 100);
}

static const json & member(const json & object, const char * key) {
    const auto found = object.find(key); // the end where it is no object
    if (found == object.end()) {
        throw damaged(std::string("no '") + key + "'");
    }
    return *found;
}

static const json & array(const json & object, const char * key) {
    const json & value = member(object, key);
    if (!value.is_array()) {
        throw damaged(std::string(key) + " " + shown(value));
    }
    return value;
}

static const json & object(const json & parent, const char * key) {
    const json & value = member(parent, key);
    if (!value.is_object()) {
        throw damaged(std::string(key) + " " + shown(value));
    }
    return value;
}

// a positive whole number
static int64_t count(const json & object, const char * key, int64_t max = INT32_MAX) {
    const json & value = member(object, key);
    if (!value.is_number_unsigned() || value.get<uint64_t>() < 1 || value.get<uint64_t>() > (uint64_t) max) {
        throw damaged(std::string(key) + " " + shown(value));
    }
    return value.get<int64_t>();
}

static double bits(const json & object, const char * key) {
    const json & value = member(object, key);
    if (!value.is_number() || !(value.get<double>() >= 0.0) || !std::isfinite(value.get<double>())) {
        throw damaged(std::string(key) + " " + shown(value));
    }
    return value.get<double>();
}

// a text without control characters, as it may be printed on a terminal
static std::string word(const json & object, const char * key) {
    const json & value = member(object, key);
    if (!value.is_string()) {
        throw damaged(std::string(key) + " " + shown(value));
    }
    const std::string text = value.get<std::string>();
    for (size_t i = 0; i < text.size(); ++i) {
        const unsigned char c  = text[i];
        const bool          c1 = c == 0xC2 && i + 1 < text.size() && (unsigned char) text[i + 1] < 0xA0;
        if (c < ' ' || c == 0x7f || c1) {
            throw damaged(std::string(key) + " " + shown(value));
        }
    }
    return text;
}

// Reserved on Windows or with a meaning in a path; everything else that has no separator is a plain file name
static bool is_plain_name(const std::string & name) {
    const auto is_special = [](char c) {
        return (unsigned char) c < ' ' || std::string("/\\:*?\"<>|").find(c) != std::string::npos;
    };
    return !name.empty() && name != "." && name != ".." && std::none_of(name.begin(), name.end(), is_special);
}

//
// parts
//

static std::map<std::string, pmpd_weights_file> read_files(const json & document) {
    std::map<std::string, pmpd_weights_file> files;
    for (const auto & [name, file] : object(document, "files").items()) {
        files[name] = { (uint64_t) count(file, "bytes", INT64_MAX), word(file, "sha256"), bits(file, "bpw") };
    }
    return files;
}

static std::vector<pmpd_level> read_levels(const json & document) {
    std::vector<pmpd_level> levels;
    for (const json & entry : array(document, "levels")) {
        pmpd_level level = { (int32_t) count(entry, "precision"), {} };
        for (const json & name : array(entry, "weights")) {
            if (!name.is_string()) {
                throw damaged("weights " + shown(name));
            }
            level.weights.push_back(name.get<std::string>());
        }
        levels.push_back(level);
    }
    std::stable_sort(levels.begin(), levels.end(), [](const pmpd_level & a, const pmpd_level & b) {
        return a.precision > b.precision;
    });
    return levels;
}

static std::vector<pmpd_switch> read_switches(const json & schedule) {
    const json & kind = member(schedule, "kind");
    if (kind != "static") {
        throw damaged("schedule of kind " + shown(kind));
    }
    std::vector<pmpd_switch> switches;
    for (const json & entry : array(schedule, "switches")) {
        switches.push_back({ count(entry, "step"), (int32_t) count(entry, "precision") });
    }
    return switches;
}

// a file beside the weights, which may be absent or null
static std::vector<pmpd_extra_file> read_extra(const json & document, const char * key) {
    const auto found = document.find(key);
    if (found == document.end() || found->empty()) {
        return {};
    }
    return { { word(*found, "file"), word(*found, "sha256") } };
}

static int32_t read_predictor_prefill(const json & document, int32_t prefill) {
    const auto predictor = document.find("predictor");
    const auto training  = predictor == document.end() ? document.end() : predictor->find("training");
    if (predictor == document.end() || training == predictor->end() || !training->contains("prefill")) {
        return prefill;
    }
    return (int32_t) count(*training, "prefill");
}

//
// consistency
//

static void check_level(const pmpd_level & level, const pmpd_manifest & manifest, bool is_nested) {
    static const std::set<int32_t> precisions = { 16, 8, 6, 5, 4, 3, 2 };

    const std::string name      = "level " + std::to_string(level.precision);
    const auto        is_listed = [&](const std::string & file) { return manifest.files.count(file) > 0; };
    if (precisions.count(level.precision) == 0) {
        throw pmpd_failure(PMPD_BUNDLE, "precision " + std::to_string(level.precision));
    }
    if (level.weights.empty() || !std::all_of(level.weights.begin(), level.weights.end(), is_listed)) {
        throw pmpd_failure(PMPD_BUNDLE, name + " with files that are not listed");
    }
    if (level.weights.size() > 1 && !is_nested) {
        throw pmpd_failure(PMPD_BUNDLE, name + " of several files in the separate layout");
    }
}

static void check_names(const pmpd_manifest & manifest) {
    std::vector<std::string> names;
    for (const auto & [name, file] : manifest.files) {
        names.push_back(name);
    }
    for (const auto * extras : { &manifest.predictor, &manifest.imatrix }) {
        for (const pmpd_extra_file & extra : *extras) {
            names.push_back(extra.file);
        }
    }
    for (const std::string & name : names) {
        if (!is_plain_name(name)) {
            throw pmpd_failure(PMPD_BUNDLE, "file name '" + name + "', which would lead out of the bundle");
        }
    }
}

static void check_consistency(const pmpd_manifest & manifest, const std::string & layout) {
    check_names(manifest);
    if (layout != "separate" && layout != "nested") {
        throw pmpd_failure(PMPD_BUNDLE, "layout '" + layout + "'");
    }
    if (manifest.levels.empty()) {
        throw pmpd_failure(PMPD_BUNDLE, "no levels");
    }
    std::set<int32_t> precisions;
    for (const pmpd_level & level : manifest.levels) {
        if (!precisions.insert(level.precision).second) {
            throw pmpd_failure(PMPD_BUNDLE, "a precision twice");
        }
        check_level(level, manifest, layout == "nested");
    }
    std::vector<int32_t> used = { manifest.prefill };
    for (const pmpd_switch & one : manifest.switches) {
        used.push_back(one.precision);
    }
    for (const int32_t precision : used) {
        if (precisions.count(precision) == 0) {
            const std::string name = std::to_string(precision);
            throw pmpd_failure(PMPD_BUNDLE, "prefill or schedule at precision " + name + ", which no level has");
        }
    }
}

static pmpd_manifest read_manifest(const std::string & text, const std::string & path) {
    json document;
    try {
        document = json::parse(text);
    } catch (const json::exception & error) {
        throw pmpd_failure(PMPD_BUNDLE, std::string("not readable (") + error.what() + ")");
    }
    const auto format = document.find("format");
    if (format == document.end() || *format != FORMAT) {
        throw pmpd_failure(PMPD_BUNDLE, "not the manifest of a bundle");
    }
    const json & version = member(document, "version");
    if (version != VERSION) {
        const std::string mine = std::to_string(VERSION);
        throw pmpd_failure(PMPD_BUNDLE, "format version " + shown(version) + ", this program reads " + mine);
    }

    const json &  schedule = object(document, "schedule");
    pmpd_manifest manifest;
    manifest.path              = path;
    manifest.name              = word(document, "name");
    manifest.architecture      = word(document, "architecture");
    manifest.parameters        = count(document, "parameters", INT64_MAX);
    manifest.context_length    = (int32_t) count(document, "context_length");
    manifest.tokenizer_sha256  = word(document, "tokenizer_sha256");
    manifest.files             = read_files(document);
    manifest.levels            = read_levels(document);
    manifest.prefill           = (int32_t) count(document, "prefill");
    manifest.switches          = read_switches(schedule);
    manifest.max_new_tokens    = (int32_t) count(schedule, "max_new_tokens");
    manifest.predictor         = read_extra(document, "predictor");
    manifest.predictor_prefill = read_predictor_prefill(document, manifest.prefill);
    manifest.imatrix           = read_extra(document, "imatrix");

    pmpd_switches_check(manifest.switches);
    check_consistency(manifest, word(document, "layout"));
    return manifest;
}

pmpd_manifest pmpd_manifest_parse(const std::string & text, const std::string & path) {
    try {
        return read_manifest(text, path);
    } catch (const pmpd_failure & failure) {
        throw pmpd_failure(PMPD_BUNDLE, path + "/" + MANIFEST + ": " + failure.what() + ": " + PMPD_CONVERT_AGAIN);
    }
}

//
// what follows from it
//

std::string pmpd_manifest::file_path(const std::string & name) const {
    return path + "/" + name;
}

const pmpd_level & pmpd_manifest::level(int32_t precision) const {
    std::string have;
    for (const pmpd_level & level : levels) {
        if (level.precision == precision) {
            return level;
        }
        have += (have.empty() ? "" : ", ") + std::to_string(level.precision);
    }
    const std::string name = std::to_string(precision);
    throw pmpd_failure(PMPD_ARGUMENT, path + ": no level of precision " + name + ": choose one of " + have);
}

double pmpd_manifest::bpw(const pmpd_level & level) const {
    double sum = 0.0;
    for (const std::string & name : level.weights) {
        sum += files.at(name).bpw;
    }
    return sum;
}

// The text that is hashed is Python's json.dumps(): [[8, ["..."]], [4, ["..."]]]
std::string pmpd_manifest::fingerprint() const {
    std::string text = "[";
    for (const pmpd_level & level : levels) {
        text += (text.size() > 1 ? ", [" : "[") + std::to_string(level.precision) + ", [";
        for (size_t i = 0; i < level.weights.size(); ++i) {
            const json sha256 = files.at(level.weights[i]).sha256;
            text += (i > 0 ? ", " : "") + sha256.dump(-1, ' ', true);
        }
        text += "]]";
    }
    text += "]";
    pmpd_sha256 hash;
    hash.update(text.data(), text.size());
    return hash.hex();
}

void pmpd_switches_check(const std::vector<pmpd_switch> & switches) {
    bool rises = !switches.empty() && switches[0].step == 1;
    for (size_t i = 1; i < switches.size(); ++i) {
        rises = rises && switches[i].step > switches[i - 1].step;
    }
    if (!rises) {
        const std::string text = pmpd_switches_format(switches);
        throw pmpd_failure(PMPD_ARGUMENT, "schedule '" + text + "': the first step is 1 and the others rise");
    }
}

std::string pmpd_switches_format(const std::vector<pmpd_switch> & switches) {
    std::string text;
    for (const pmpd_switch & one : switches) {
        text += (text.empty() ? "" : ",") + std::to_string(one.precision) + "@" + std::to_string(one.step);
    }
    return text;
}
