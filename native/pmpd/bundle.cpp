#include "bundle.h"

#include "failure.h"
#include "sha256.h"
#include "tokenizer_hash.h"

#include "ggml.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

static constexpr size_t MANIFEST_MAX = 64u << 20; // a damaged or foreign file could be of any size
static constexpr size_t BLOCK        = 4u << 20;

//
// files
//

namespace {

struct file_deleter {
    void operator()(FILE * file) const { std::fclose(file); }
};

using file_ptr = std::unique_ptr<FILE, file_deleter>;

} // namespace

static pmpd_failure broken(const std::string & path, const std::string & what) {
    return pmpd_failure(PMPD_BUNDLE, path + ": " + what + ": " + PMPD_CONVERT_AGAIN);
}

static file_ptr open_file(const std::string & path) {
    file_ptr file(ggml_fopen(path.c_str(), "rb"));
    if (!file) {
        throw broken(path, std::strerror(errno));
    }
    return file;
}

static std::string read_manifest(const std::string & directory) {
    const std::string path = directory + "/pmpd.json";
    file_ptr          file(ggml_fopen(path.c_str(), "rb"));
    if (!file) {
        const bool is_missing = errno == ENOENT || errno == ENOTDIR;
        throw broken(directory, is_missing ? "not a bundle (no pmpd.json)" : std::strerror(errno));
    }
    std::string       text;
    std::vector<char> block(1u << 16);
    while (const size_t n = std::fread(block.data(), 1, block.size(), file.get())) {
        text.append(block.data(), n);
        if (text.size() > MANIFEST_MAX) {
            throw broken(path, "too large for a manifest");
        }
    }
    if (std::ferror(file.get())) {
        throw broken(path, "cannot be read");
    }
    return text;
}

static void check_file(const std::string & path, uint64_t n_bytes) {
    char       magic[4] = { 0 };
    file_ptr   file     = open_file(path);
    std::error_code error;
    const uint64_t  size = std::filesystem::file_size(std::filesystem::u8path(path), error);
    if (error) {
        throw broken(path, error.message());
    }
    if (size != n_bytes) {
        throw broken(path, std::to_string(size) + " bytes, the manifest says " + std::to_string(n_bytes));
    }
    if (std::fread(magic, 1, sizeof(magic), file.get()) != sizeof(magic) || std::memcmp(magic, "GGUF", 4) != 0) {
        throw broken(path, "not a GGUF file");
    }
}

// A predictor is looked for where it is used: the other schedulers do without it
static void check_files(const pmpd_manifest & manifest) {
    for (const pmpd_extra_file & extra : manifest.imatrix) {
        open_file(manifest.file_path(extra.file));
    }
    for (const auto & [name, file] : manifest.files) {
        check_file(manifest.file_path(name), file.bytes);
    }
}

void pmpd_check_sha256(
        const std::string & path,
        const std::string & sha256,
        bool (*progress)(uint64_t n_bytes, void * user_data),
        void *     user_data,
        uint64_t * n_bytes) {
    file_ptr                   file = open_file(path);
    std::vector<unsigned char> block(BLOCK);
    pmpd_sha256                hash;
    while (const size_t n = std::fread(block.data(), 1, block.size(), file.get())) {
        hash.update(block.data(), n);
        if (progress && !progress(*n_bytes += n, user_data)) {
            throw pmpd_failure(PMPD_CANCELLED, "the check was cancelled");
        }
    }
    if (hash.hex() != sha256) {
        throw broken(path, "damaged (its SHA-256 is not the manifest's)");
    }
}

void pmpd_check_tokenizer(const pmpd_manifest & manifest, const std::string & name) {
    const std::string path = manifest.file_path(name);
    std::string       hash;
    try {
        hash = pmpd_tokenizer_sha256(path);
    } catch (const std::runtime_error & error) {
        throw broken(path, std::string("not a GGUF file, or damaged (") + error.what() + ")");
    }
    if (hash != manifest.tokenizer_sha256) {
        throw broken(path, "its tokenizer is not that of the manifest");
    }
}

//
// the C API
//

int32_t pmpd_bundle_open(const char * path, struct pmpd_bundle ** bundle) {
    return pmpd_guard([&] {
        pmpd_check_argument(path && bundle, "no path, or nowhere to put the bundle");
        *bundle = nullptr;

        auto manifest = std::make_shared<pmpd_manifest>(pmpd_manifest_parse(read_manifest(path), path));
        check_files(*manifest);

        auto opened      = std::make_unique<pmpd_bundle>();
        opened->schedule = pmpd_switches_format(manifest->switches);
        opened->manifest = std::move(manifest);
        *bundle          = opened.release();
        return PMPD_OK;
    });
}

void pmpd_bundle_free(struct pmpd_bundle * bundle) {
    delete bundle;
}

int32_t pmpd_bundle_verify(
        const struct pmpd_bundle * bundle,
        bool (*progress)(uint64_t n_bytes, void * user_data),
        void * user_data) {
    return pmpd_guard([&] {
        const pmpd_manifest & manifest = *bundle->manifest;
        uint64_t              n_bytes  = 0;
        for (const auto & [name, file] : manifest.files) {
            pmpd_check_sha256(manifest.file_path(name), file.sha256, progress, user_data, &n_bytes);
            pmpd_check_tokenizer(manifest, name);
        }
        for (const auto * extras : { &manifest.imatrix, &manifest.predictor }) {
            for (const pmpd_extra_file & extra : *extras) {
                pmpd_check_sha256(manifest.file_path(extra.file), extra.sha256, progress, user_data, &n_bytes);
            }
        }
        return PMPD_OK;
    });
}

const char * pmpd_bundle_name(const struct pmpd_bundle * bundle) {
    return bundle->manifest->name.c_str();
}

const char * pmpd_bundle_architecture(const struct pmpd_bundle * bundle) {
    return bundle->manifest->architecture.c_str();
}

int64_t pmpd_bundle_parameters(const struct pmpd_bundle * bundle) {
    return bundle->manifest->parameters;
}

int32_t pmpd_bundle_context_length(const struct pmpd_bundle * bundle) {
    return bundle->manifest->context_length;
}

uint64_t pmpd_bundle_bytes(const struct pmpd_bundle * bundle) {
    uint64_t sum = 0;
    for (const auto & [name, file] : bundle->manifest->files) {
        sum += file.bytes;
    }
    return sum;
}

int32_t pmpd_bundle_prefill(const struct pmpd_bundle * bundle) {
    return bundle->manifest->prefill;
}

int32_t pmpd_bundle_max_new_tokens(const struct pmpd_bundle * bundle) {
    return bundle->manifest->max_new_tokens;
}

bool pmpd_bundle_has_predictor(const struct pmpd_bundle * bundle) {
    return !bundle->manifest->predictor.empty();
}

int32_t pmpd_bundle_n_levels(const struct pmpd_bundle * bundle) {
    return (int32_t) bundle->manifest->levels.size();
}

int32_t pmpd_bundle_precision(const struct pmpd_bundle * bundle, int32_t i) {
    return bundle->manifest->levels[i].precision;
}

double pmpd_bundle_bpw(const struct pmpd_bundle * bundle, int32_t i) {
    return bundle->manifest->bpw(bundle->manifest->levels[i]);
}

const char * pmpd_bundle_schedule(const struct pmpd_bundle * bundle) {
    return bundle->schedule.c_str();
}
