// A bundle on disk: its manifest, and the files that it names.

#pragma once

#include "manifest.h"
#include "pmpd.h"

#include <memory>

// Sessions share the manifest, so that they can outlive the bundle
struct pmpd_bundle {
    std::shared_ptr<const pmpd_manifest> manifest;
    std::string                          schedule; // as text
};

// Fails with PMPD_BUNDLE unless the file's SHA-256 is this; progress as in pmpd_bundle_verify()
void pmpd_check_sha256(
        const std::string & path,
        const std::string & sha256,
        bool (*progress)(uint64_t n_bytes, void * user_data) = nullptr,
        void *     user_data = nullptr,
        uint64_t * n_bytes   = nullptr);

// Fails with PMPD_BUNDLE unless a weights file has the tokenizer of the manifest, which all levels share
void pmpd_check_tokenizer(const pmpd_manifest & manifest, const std::string & name);
