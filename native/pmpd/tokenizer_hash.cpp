#include "tokenizer_hash.h"

#include "sha256.h"

#include "ggml.h"
#include "gguf.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <stdexcept>

namespace {

struct file_deleter {
    void operator()(FILE * file) const { std::fclose(file); }
};

// Goes over the entries of a GGUF file and keeps the bytes of the present one: gguf.h gives strings without their
// length, and asserts where this throws std::runtime_error. Machines that this runs on are little-endian, as files are
class entry_reader {
public:
    explicit entry_reader(const std::string & path) : file(ggml_fopen(path.c_str(), "rb")) {
        std::error_code error;
        left = std::filesystem::file_size(std::filesystem::u8path(path), error);
        if (!file || error) {
            throw std::runtime_error("cannot be read");
        }
    }

    std::string bytes; // of the present entry

    template <typename T>
    T number() {
        T value;
        std::memcpy(&value, read(sizeof(T)), sizeof(T));
        return value;
    }

    std::string string() {
        const uint64_t size = number<uint64_t>();
        return std::string(read(size), size);
    }

    void value(uint32_t type, bool in_array = false) {
        if (type == GGUF_TYPE_STRING) {
            string();
        } else if (type == GGUF_TYPE_ARRAY && !in_array) {
            const uint32_t of = number<uint32_t>();
            const uint64_t n  = number<uint64_t>();
            if (of != GGUF_TYPE_STRING) {
                read(n > left ? left + 1 : n*type_size(of));
                return;
            }
            for (uint64_t i = 0; i < n; ++i) {
                value(of, true);
            }
        } else {
            read(type_size(type));
        }
    }

private:
    std::unique_ptr<FILE, file_deleter> file;
    uint64_t                            left; // bytes of the file

    const char * read(uint64_t n) {
        if (n > left) {
            throw std::runtime_error("cut short");
        }
        const size_t before = bytes.size();
        bytes.resize(before + n);
        if (std::fread(&bytes[before], 1, n, file.get()) != n) {
            throw std::runtime_error("cannot be read");
        }
        left -= n;
        return bytes.data() + before;
    }

    static uint64_t type_size(uint32_t type) {
        switch (type) {
            case GGUF_TYPE_UINT8:
            case GGUF_TYPE_INT8:
            case GGUF_TYPE_BOOL:
                return 1;
            case GGUF_TYPE_UINT16:
            case GGUF_TYPE_INT16:
                return 2;
            case GGUF_TYPE_UINT32:
            case GGUF_TYPE_INT32:
            case GGUF_TYPE_FLOAT32:
                return 4;
            case GGUF_TYPE_UINT64:
            case GGUF_TYPE_INT64:
            case GGUF_TYPE_FLOAT64:
                return 8;
            default:
                throw std::runtime_error("an entry of type " + std::to_string(type));
        }
    }
};

} // namespace

static std::map<std::string, std::string> read_tokenizer(const std::string & path) {
    entry_reader   reader(path);
    const uint32_t magic   = reader.number<uint32_t>();
    const uint32_t version = reader.number<uint32_t>();
    reader.number<uint64_t>(); // tensors
    const uint64_t n_entries = reader.number<uint64_t>();
    if (std::memcmp(&magic, "GGUF", sizeof(magic)) != 0 || version < 2 || version > 3) {
        throw std::runtime_error("not a GGUF file of version 2 or 3");
    }
    std::map<std::string, std::string> entries;
    for (uint64_t i = 0; i < n_entries; ++i) {
        reader.bytes.clear();
        const std::string key = reader.string();
        reader.value(reader.number<uint32_t>());
        if (key.compare(0, 10, "tokenizer.") == 0) {
            entries[key] = reader.bytes;
        }
    }
    return entries;
}

std::string pmpd_tokenizer_sha256(const std::string & path) {
    pmpd_sha256 hash;
    for (const auto & [key, bytes] : read_tokenizer(path)) {
        hash.update(bytes.data(), bytes.size());
    }
    return hash.hex();
}
