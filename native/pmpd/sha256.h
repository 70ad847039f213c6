// SHA-256 of bytes that come in pieces, around the implementation that llama.cpp vendors.

#pragma once

#include <cstdint> // what the C header includes must not be within extern "C"
#include <cstdlib>
#include <string>

extern "C" {
#include "hash/sha256/sha256.h"
}

class pmpd_sha256 {
public:
    pmpd_sha256() {
        sha256_init(&state);
    }

    void update(const void * data, size_t size) {
        sha256_update(&state, (const unsigned char *) data, size);
    }

    // In lower-case hexadecimal; the last call
    std::string hex() {
        unsigned char digest[SHA256_DIGEST_SIZE];
        sha256_final(&state, digest);
        std::string text;
        for (const unsigned char byte : digest) {
            text += "0123456789abcdef"[byte >> 4];
            text += "0123456789abcdef"[byte & 15];
        }
        return text;
    }

private:
    sha256_t state;
};
