// The hash by which a bundle knows that all its weights files have the same tokenizer.

#pragma once

#include <string>

// SHA-256 over all metadata `tokenizer.*` of a GGUF file, sorted by key, each as the file has it (key, type, value),
// as in pmpd_edge/gguf_info.py. Throws std::runtime_error where the file is not a GGUF file, or damaged
std::string pmpd_tokenizer_sha256(const std::string & path);
