// The manifest of a bundle, pmpd.json, as data: parsed and checked. The same checks as in pmpd_edge/bundle.py.
//
// It knows nothing of the files that it names: whether they are there is bundle.cpp's business.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct pmpd_weights_file {
    uint64_t    bytes;
    std::string sha256;
    double      bpw; // real bits per weight
};

struct pmpd_extra_file {
    std::string file;
    std::string sha256;
};

// The files whose matrices, summed, are its weights: a base, then its residuals
struct pmpd_level {
    int32_t                  precision;
    std::vector<std::string> weights;
};

// From decode step `step` (1 is the first) on, the precision is `precision`
struct pmpd_switch {
    int64_t step;
    int32_t precision;
};

struct pmpd_manifest {
    std::string path; // the bundle's directory, UTF-8

    std::string name;
    std::string architecture;
    int64_t     parameters;
    int32_t     context_length;
    std::string tokenizer_sha256;

    std::map<std::string, pmpd_weights_file> files;
    std::vector<pmpd_level>                  levels; // from the highest precision to the lowest

    int32_t                  prefill;
    std::vector<pmpd_switch> switches; // by rising step; the first one is at step 1
    int32_t                  max_new_tokens;

    std::vector<pmpd_extra_file> predictor;         // one or none
    int32_t                      predictor_prefill; // the precision of the prompts that it was trained on
    std::vector<pmpd_extra_file> imatrix;           // one or none

    std::string file_path(const std::string & name) const;

    // The level of a precision; fails with PMPD_ARGUMENT where there is none
    const pmpd_level & level(int32_t precision) const;

    // Real bits per weight of a level: its files', summed
    double bpw(const pmpd_level & level) const;

    // SHA-256 over the hashes of all files: two bundles that share it compute the same numbers
    std::string fingerprint() const;
};

// What to do about a bundle that is not what it should be
extern const char * const PMPD_CONVERT_AGAIN;

// Parse and check the text of a manifest; fails with PMPD_BUNDLE. path is the bundle's directory
pmpd_manifest pmpd_manifest_parse(const std::string & text, const std::string & path);

// Fails with PMPD_ARGUMENT unless the first switch is at step 1 and the others rise
void pmpd_switches_check(const std::vector<pmpd_switch> & switches);

// "8@1,4@86"
std::string pmpd_switches_format(const std::vector<pmpd_switch> & switches);
