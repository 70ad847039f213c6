#include "predictor.h"

#include "ggml.h"
#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

static constexpr const char * ARCHITECTURE = "pmpd-predictor";
static constexpr uint32_t     VERSION      = 1;
static constexpr float        NORM_EPS     = 1e-5f;
static constexpr int32_t      MAX_SIZE     = 1 << 20; // of any dimension: products of three fit int64_t
static constexpr int64_t      LANES        = 16;      // partial sums of a dot product, which compilers turn into SIMD

struct pmpd_network {
    int32_t high;
    int32_t low;
    float   temperature; // logits are divided by it

    std::vector<float> prior;         // [n_classes]
    std::vector<float> query;         // [n_head_kv][head_dim_k]
    std::vector<float> norm_weight;   // [n_head_kv*head_dim_v]
    std::vector<float> norm_bias;
    std::vector<float> hidden_weight; // [n_hidden][n_head_kv*head_dim_v + 1]
    std::vector<float> hidden_bias;
    std::vector<float> output_weight; // [n_classes][n_hidden]
    std::vector<float> output_bias;
};

struct pmpd_predictor {
    std::string fingerprint;

    int32_t layer;
    int32_t n_head_kv;
    int32_t head_dim_k;
    int32_t head_dim_v;
    int32_t n_hidden;
    int32_t max_new_tokens;

    std::vector<float>        classes;
    std::vector<pmpd_network> networks; // one for each pair
};

//
// reading
//

namespace {

struct file_deleter {
    void operator()(FILE * file) const { std::fclose(file); }
};

struct gguf_deleter {
    void operator()(gguf_context * ctx) const { gguf_free(ctx); }
};

// A GGUF file whose values are fetched by name and checked. Its getters throw std::runtime_error
// The data of tensors is read here, not by gguf: that would allocate whatever size a damaged file asks for
class predictor_file {
public:
    explicit predictor_file(const char * path) {
        file.reset(ggml_fopen(path, "rb"));
        if (!file) {
            throw std::runtime_error("cannot be opened");
        }
        ctx.reset(gguf_init_from_file_ptr(file.get(), { /*.no_alloc =*/ true, /*.ctx =*/ nullptr }));
        if (!ctx) {
            throw std::runtime_error("not a GGUF file, or damaged");
        }
        if (string("general.architecture") != ARCHITECTURE) {
            throw std::runtime_error("not a predictor but a model of architecture " + string("general.architecture"));
        }
        if (std::fseek(file.get(), 0, SEEK_END) != 0 || (size = std::ftell(file.get())) < 0) {
            throw std::runtime_error("cannot be read");
        }
    }

    std::string string(const std::string & name) const {
        return gguf_get_val_str(ctx.get(), key(name, GGUF_TYPE_STRING));
    }

    // a number of type u32 in [1, max]
    int32_t count(const std::string & name, int32_t max) const {
        const uint32_t value = gguf_get_val_u32(ctx.get(), key(name, GGUF_TYPE_UINT32));
        if (value < 1 || value > (uint32_t) max) {
            throw std::runtime_error(name + " is " + std::to_string(value) + ", which is not in [1, " + std::to_string(max) + "]");
        }
        return (int32_t) value;
    }

    int32_t i32(const std::string & name) const {
        return gguf_get_val_i32(ctx.get(), key(name, GGUF_TYPE_INT32));
    }

    std::vector<float> floats(const std::string & name) const {
        return array<float>(name, GGUF_TYPE_FLOAT32);
    }

    std::vector<int32_t> ints(const std::string & name) const {
        return array<int32_t>(name, GGUF_TYPE_INT32);
    }

    // an F32 tensor of n_rows * n_columns finite numbers; vectors have one row
    std::vector<float> tensor(const std::string & name, int64_t n_rows, int64_t n_columns) const {
        const int64_t id = gguf_find_tensor(ctx.get(), name.c_str());
        if (id < 0) {
            throw std::runtime_error("no tensor " + name);
        }
        const int64_t * ne = gguf_get_tensor_ne(ctx.get(), id);
        if (gguf_get_tensor_type(ctx.get(), id) != GGML_TYPE_F32 || ne[0] != n_columns || ne[1] != n_rows || ne[2] != 1 || ne[3] != 1) {
            throw std::runtime_error("tensor " + name + " is not F32 of " + std::to_string(n_rows) + " x " + std::to_string(n_columns));
        }
        const uint64_t offset  = gguf_get_data_offset(ctx.get()) + gguf_get_tensor_offset(ctx.get(), id);
        const uint64_t n_bytes = (uint64_t) n_rows * n_columns * sizeof(float);
        if (offset > (uint64_t) size || n_bytes > (uint64_t) size - offset) {
            throw std::runtime_error("truncated: tensor " + name + " is not all there");
        }
        std::vector<float> data(n_rows * n_columns);
        if (std::fseek(file.get(), (long) offset, SEEK_SET) != 0 || std::fread(data.data(), 1, n_bytes, file.get()) != n_bytes) {
            throw std::runtime_error("tensor " + name + " cannot be read");
        }
        if (!all_finite(data)) {
            throw std::runtime_error("tensor " + name + " holds numbers that are not finite");
        }
        return data;
    }

private:
    std::unique_ptr<FILE, file_deleter>         file;
    std::unique_ptr<gguf_context, gguf_deleter> ctx;
    long                                        size = 0; // a predictor is far smaller than 2 GiB

    static bool all_finite(const std::vector<float> & values) {
        return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
    }

    int64_t key(const std::string & name, enum gguf_type type) const {
        const int64_t id = gguf_find_key(ctx.get(), name.c_str());
        if (id < 0) {
            throw std::runtime_error("no entry " + name);
        }
        if (gguf_get_kv_type(ctx.get(), id) != type) {
            throw std::runtime_error(name + " is not of type " + gguf_type_name(type));
        }
        return id;
    }

    template <typename T>
    std::vector<T> array(const std::string & name, enum gguf_type type) const {
        const int64_t id = key(name, GGUF_TYPE_ARRAY);
        if (gguf_get_arr_type(ctx.get(), id) != type) {
            throw std::runtime_error(name + " is not an array of type " + gguf_type_name(type));
        }
        const T * data = (const T *) gguf_get_arr_data(ctx.get(), id);
        return std::vector<T>(data, data + gguf_get_arr_n(ctx.get(), id));
    }
};

} // namespace

static void pmpd_predictor_check_classes(const std::vector<float> & classes) {
    if (classes.size() < 2 || classes.size() > (size_t) MAX_SIZE) {
        throw std::runtime_error(std::to_string(classes.size()) + " classes");
    }
    for (size_t i = 0; i < classes.size(); ++i) {
        // written so that a NaN fails
        if (!(classes[i] >= 0.0f && classes[i] <= 1.0f) || (i > 0 && !(classes[i] > classes[i - 1]))) {
            throw std::runtime_error("the classes do not rise from 0 to 1");
        }
    }
}

static void pmpd_predictor_check_network(const pmpd_network & network) {
    const std::string name = std::to_string(network.high) + "-" + std::to_string(network.low);
    if (network.low < 1 || network.high <= network.low) {
        throw std::runtime_error("the pair " + name + " is not one of a high and a low precision");
    }
    if (!(network.temperature > 0.0f) || !std::isfinite(network.temperature)) {
        throw std::runtime_error("the temperature of " + name + " is not a positive number");
    }
    float sum = 0.0f;
    for (const float share : network.prior) {
        if (!(share >= 0.0f)) {
            throw std::runtime_error("the prior of " + name + " is negative");
        }
        sum += share;
    }
    if (!(std::fabs(sum - 1.0f) < 1e-3f)) {
        throw std::runtime_error("the prior of " + name + " does not sum to 1");
    }
}

static void pmpd_predictor_read_networks(pmpd_predictor & predictor, const predictor_file & file) {
    const std::string prefix = "pmpd.predictor.";

    const std::vector<int32_t> high        = file.ints  (prefix + "pairs.high");
    const std::vector<int32_t> low         = file.ints  (prefix + "pairs.low");
    const std::vector<float>   temperature = file.floats(prefix + "pairs.temperature");
    const std::vector<float>   prior       = file.floats(prefix + "pairs.prior"); // [n_pairs][n_classes]

    const size_t n_pairs   = high.size();
    const size_t n_classes = predictor.classes.size();
    if (n_pairs < 1 || low.size() != n_pairs || temperature.size() != n_pairs || prior.size() != n_pairs*n_classes) {
        throw std::runtime_error("the entries on pairs of precisions differ in their number");
    }

    const int64_t n_values = (int64_t) predictor.n_head_kv*predictor.head_dim_v;
    for (size_t i = 0; i < n_pairs; ++i) {
        const std::string tensors = prefix + std::to_string(i);

        pmpd_network network;
        network.high          = high[i];
        network.low           = low[i];
        network.temperature   = temperature[i];
        network.prior         = std::vector<float>(prior.begin() + i*n_classes, prior.begin() + (i + 1)*n_classes);
        network.query         = file.tensor(tensors + ".query",         predictor.n_head_kv, predictor.head_dim_k);
        network.norm_weight   = file.tensor(tensors + ".norm.weight",   1,                   n_values);
        network.norm_bias     = file.tensor(tensors + ".norm.bias",     1,                   n_values);
        network.hidden_weight = file.tensor(tensors + ".hidden.weight", predictor.n_hidden,  n_values + 1);
        network.hidden_bias   = file.tensor(tensors + ".hidden.bias",   1,                   predictor.n_hidden);
        network.output_weight = file.tensor(tensors + ".output.weight", n_classes,           predictor.n_hidden);
        network.output_bias   = file.tensor(tensors + ".output.bias",   1,                   n_classes);

        pmpd_predictor_check_network(network);
        for (const pmpd_network & other : predictor.networks) {
            if (other.high == network.high && other.low == network.low) {
                throw std::runtime_error("the pair " + std::to_string(other.high) + "-" + std::to_string(other.low) + " is there twice");
            }
        }
        predictor.networks.push_back(std::move(network));
    }
}

static std::unique_ptr<pmpd_predictor> pmpd_predictor_read(const char * path) {
    const predictor_file file(path);

    const std::string prefix  = "pmpd.predictor.";
    const int32_t     version = file.count(prefix + "version", INT32_MAX);
    if (version != VERSION) {
        throw std::runtime_error("format version " + std::to_string(version) + ", this program reads " + std::to_string(VERSION));
    }

    auto predictor = std::make_unique<pmpd_predictor>();

    predictor->fingerprint    = file.string(prefix + "fingerprint");
    predictor->layer          = file.i32   (prefix + "layer");
    predictor->n_head_kv      = file.count (prefix + "head_count_kv",  MAX_SIZE);
    predictor->head_dim_k     = file.count (prefix + "key_length",     MAX_SIZE);
    predictor->head_dim_v     = file.count (prefix + "value_length",   MAX_SIZE);
    predictor->n_hidden       = file.count (prefix + "hidden_length",  MAX_SIZE);
    predictor->max_new_tokens = file.count (prefix + "max_new_tokens", INT32_MAX);
    predictor->classes        = file.floats(prefix + "classes");

    pmpd_predictor_check_classes(predictor->classes);
    pmpd_predictor_read_networks(*predictor, file);
    return predictor;
}

pmpd_predictor * pmpd_predictor_load(const char * path, char * error, size_t error_size) {
    const auto fail = [&](const char * reason) -> pmpd_predictor * {
        if (error && error_size > 0) {
            std::snprintf(error, error_size, "%s", reason);
            for (char * c = error; *c; ++c) { // the file's own words may hold anything
                *c = (unsigned char) *c < ' ' || *c == 0x7f ? '?' : *c;
            }
        }
        return nullptr;
    };
    try {
        return pmpd_predictor_read(path).release();
    } catch (const std::bad_alloc &) {
        return fail("no memory to load it");
    } catch (const std::exception & exception) {
        return fail(exception.what());
    } catch (...) {
        return fail("cannot be loaded");
    }
}

void pmpd_predictor_free(pmpd_predictor * predictor) {
    delete predictor;
}

//
// getters
//

const char * pmpd_predictor_fingerprint(const pmpd_predictor * predictor) {
    return predictor->fingerprint.c_str();
}

int32_t pmpd_predictor_layer(const pmpd_predictor * predictor) {
    return predictor->layer;
}

int32_t pmpd_predictor_n_head_kv(const pmpd_predictor * predictor) {
    return predictor->n_head_kv;
}

int32_t pmpd_predictor_head_dim_k(const pmpd_predictor * predictor) {
    return predictor->head_dim_k;
}

int32_t pmpd_predictor_head_dim_v(const pmpd_predictor * predictor) {
    return predictor->head_dim_v;
}

int32_t pmpd_predictor_max_new_tokens(const pmpd_predictor * predictor) {
    return predictor->max_new_tokens;
}

int32_t pmpd_predictor_n_classes(const pmpd_predictor * predictor) {
    return (int32_t) predictor->classes.size();
}

int32_t pmpd_predictor_n_pairs(const pmpd_predictor * predictor) {
    return (int32_t) predictor->networks.size();
}

const float * pmpd_predictor_classes(const pmpd_predictor * predictor) {
    return predictor->classes.data();
}

int32_t pmpd_predictor_high(const pmpd_predictor * predictor, int32_t pair) {
    return predictor->networks[pair].high;
}

int32_t pmpd_predictor_low(const pmpd_predictor * predictor, int32_t pair) {
    return predictor->networks[pair].low;
}

const float * pmpd_predictor_prior(const pmpd_predictor * predictor, int32_t pair) {
    return predictor->networks[pair].prior.data();
}

//
// inference
//

static float dot(const float * a, const float * b, int64_t n) {
    float   sums[LANES] = { 0.0f };
    int64_t i           = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int64_t j = 0; j < LANES; ++j) {
            sums[j] += a[i + j]*b[i + j];
        }
    }
    float sum = 0.0f;
    for (int64_t j = 0; j < LANES; ++j) {
        sum += sums[j];
    }
    for (; i < n; ++i) {
        sum += a[i]*b[i];
    }
    return sum;
}

// in place
static void softmax(float * values, int64_t n) {
    const float max = *std::max_element(values, values + n);
    double      sum = 0.0; // of thousands of positions
    for (int64_t i = 0; i < n; ++i) {
        values[i] = std::exp(values[i] - max);
        sum += values[i];
    }
    const float scale = (float) (1.0/sum);
    for (int64_t i = 0; i < n; ++i) {
        values[i] *= scale;
    }
}

static void layer_norm(float * values, const float * weight, const float * bias, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        sum += values[i];
    }
    const double mean    = sum/n;
    double       squares = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        squares += (values[i] - mean)*(values[i] - mean);
    }
    const double scale = 1.0/std::sqrt(squares/n + NORM_EPS);
    for (int64_t i = 0; i < n; ++i) {
        values[i] = (float) ((values[i] - mean)*scale)*weight[i] + bias[i];
    }
}

static void linear(const float * weight, const float * bias, const float * input, int64_t n_input, float * output, int64_t n_output) {
    for (int64_t i = 0; i < n_output; ++i) {
        output[i] = dot(weight + i*n_input, input, n_input) + bias[i];
    }
}

static float gelu(float x) {
    return 0.5f*x*(1.0f + std::erf(x*(float) 0.70710678118654752440));
}

// what the queries of all heads gather from V [n_head_kv*head_dim_v]
static void pmpd_predictor_pool(
        const pmpd_predictor & predictor,
        const pmpd_network   & network,
        const float          * k,
        const float          * v,
        int64_t                n_tokens,
        float                * pooled) {
    const int64_t n_head = predictor.n_head_kv;
    const int64_t dim_k  = predictor.head_dim_k;
    const int64_t dim_v  = predictor.head_dim_v;
    const float   scale  = 1.0f/std::sqrt((float) dim_k);

    std::vector<float> scores(n_head*n_tokens); // [n_head][n_tokens]
    for (int64_t t = 0; t < n_tokens; ++t) { // heads within tokens: K and V are read in the order in which they lie
        for (int64_t h = 0; h < n_head; ++h) {
            scores[h*n_tokens + t] = dot(network.query.data() + h*dim_k, k + (t*n_head + h)*dim_k, dim_k)*scale;
        }
    }
    for (int64_t h = 0; h < n_head; ++h) {
        softmax(scores.data() + h*n_tokens, n_tokens);
    }
    std::fill_n(pooled, n_head*dim_v, 0.0f);
    for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t h = 0; h < n_head; ++h) {
            const float   weight = scores[h*n_tokens + t];
            const float * from   = v + (t*n_head + h)*dim_v;
            float       * to     = pooled + h*dim_v;
            for (int64_t i = 0; i < dim_v; ++i) {
                to[i] += weight*from[i];
            }
        }
    }
}

int32_t pmpd_predictor_run(
        const pmpd_predictor * predictor,
        int32_t                pair,
        const float          * k,
        const float          * v,
        int32_t                n_tokens,
        float                * probabilities) {
    if (pair < 0 || pair >= pmpd_predictor_n_pairs(predictor) || n_tokens < 1) {
        return PMPD_PREDICTOR_ARGUMENT;
    }
    try {
        const pmpd_network & network   = predictor->networks[pair];
        const int64_t        n_values  = (int64_t) predictor->n_head_kv*predictor->head_dim_v;
        const int64_t        n_hidden  = predictor->n_hidden;
        const int64_t        n_classes = predictor->classes.size();

        std::vector<float> features(n_values + 1);
        std::vector<float> hidden(n_hidden);

        pmpd_predictor_pool(*predictor, network, k, v, n_tokens, features.data());
        layer_norm(features.data(), network.norm_weight.data(), network.norm_bias.data(), n_values);
        features[n_values] = std::log(1.0f + (float) n_tokens); // pooling does not see how many there are

        linear(network.hidden_weight.data(), network.hidden_bias.data(), features.data(), n_values + 1, hidden.data(), n_hidden);
        for (float & value : hidden) {
            value = gelu(value);
        }
        linear(network.output_weight.data(), network.output_bias.data(), hidden.data(), n_hidden, probabilities, n_classes);
        for (int64_t i = 0; i < n_classes; ++i) {
            probabilities[i] /= network.temperature;
        }
        softmax(probabilities, n_classes);
        for (int64_t i = 0; i < n_classes; ++i) {
            if (!std::isfinite(probabilities[i])) {
                return PMPD_PREDICTOR_NOT_FINITE;
            }
        }
        return PMPD_PREDICTOR_OK;
    } catch (...) { // nothing here throws but an allocation
        return PMPD_PREDICTOR_MEMORY;
    }
}
