// The native methods of pmpd.edgellm.Native: pmpd.h, one to one.
//
// Handles are pointers, texts cross as UTF-8 bytes (JNI's own strings are not UTF-8, and Android aborts on malformed
// ones). What fails calls Native.fail(), which throws. Nothing here keeps state but the ids that JNI_OnLoad looks up,
// and nothing knows about threads.

#include "pmpd.h"

#include <dlfcn.h>
#include <jni.h>

#include <new>
#include <string>
#include <vector>

#ifdef __ANDROID__
#    include <android/log.h>
#endif

namespace {

jclass    native_class; // global references and ids: valid in all threads
jclass    bytes_class;
jmethodID native_fail;
jmethodID sink_token;
jmethodID progress_loaded;
jmethodID progress_read;

void throw_status(JNIEnv * env, int32_t status) {
    if (env->ExceptionCheck()) {
        return; // thrown by a callback: the reason why the call ended
    }
    const std::string message = pmpd_error();
    jbyteArray bytes = env->NewByteArray((jsize) message.size());
    if (bytes == nullptr) {
        return; // OutOfMemoryError is pending
    }
    env->SetByteArrayRegion(bytes, 0, (jsize) message.size(), (const jbyte *) message.data());
    env->CallStaticVoidMethod(native_class, native_fail, (jint) status, bytes);
}

// An exception that a C++ allocation threw must not reach the JVM
template <typename F> auto guarded(JNIEnv * env, F && call) -> decltype(call()) {
    try {
        return call();
    } catch (const std::bad_alloc &) {
        jclass error = env->FindClass("java/lang/OutOfMemoryError");
        if (error != nullptr) {
            env->ThrowNew(error, "native memory");
        }
        return decltype(call())();
    }
}

std::string text(JNIEnv * env, jbyteArray bytes) {
    std::string result((size_t) env->GetArrayLength(bytes), '\0');
    env->GetByteArrayRegion(bytes, 0, (jsize) result.size(), (jbyte *) &result[0]);
    return result;
}

std::vector<std::string> texts(JNIEnv * env, jobjectArray array) {
    std::vector<std::string> result((size_t) env->GetArrayLength(array));
    for (size_t i = 0; i < result.size(); i++) {
        jbyteArray bytes = (jbyteArray) env->GetObjectArrayElement(array, (jsize) i);
        result[i] = text(env, bytes);
        env->DeleteLocalRef(bytes);
    }
    return result;
}

jbyteArray to_bytes(JNIEnv * env, const char * data, size_t size) {
    jbyteArray bytes = env->NewByteArray((jsize) size);
    if (bytes != nullptr && size > 0) {
        env->SetByteArrayRegion(bytes, 0, (jsize) size, (const jbyte *) data);
    }
    return bytes;
}

jintArray to_ints(JNIEnv * env, const std::vector<int32_t> & values) {
    jintArray ints = env->NewIntArray((jsize) values.size());
    if (ints != nullptr) {
        env->SetIntArrayRegion(ints, 0, (jsize) values.size(), (const jint *) values.data());
    }
    return ints;
}

// pmpd_options, and what its texts point to
struct options {
    options(JNIEnv * env, jbyteArray method, jbyteArray scheduler, jintArray numbers)
        : method_text(text(env, method)), values(pmpd_default_options()) {
        jint n[10] = {}; // SessionOptions.numbers
        env->GetIntArrayRegion(numbers, 0, 10, n);
        values.method       = method_text.c_str();
        values.scheduler    = nullptr;
        values.high_steps   = n[0];
        values.prefill      = n[1];
        values.draft_tokens = n[2];
        values.draft        = n[3];
        values.n_ctx        = n[4];
        values.n_batch      = n[5];
        values.n_threads    = n[6];
        values.n_gpu_layers = n[7];
        values.use_mmap     = n[8] != 0;
        values.pin_threads  = n[9] != 0;
        if (scheduler != nullptr) {
            scheduler_text   = text(env, scheduler);
            values.scheduler = scheduler_text.c_str();
        }
    }

    options(const options &)             = delete;
    options & operator=(const options &) = delete;

    std::string  method_text;
    std::string  scheduler_text;
    pmpd_options values;
};

// A Kotlin object that native code calls back, in the thread that called native code
struct callback {
    JNIEnv * env;
    jobject  object;
};

bool call_loaded(float share, void * user_data) {
    const callback * to = (const callback *) user_data;
    const jboolean go_on = to->env->CallBooleanMethod(to->object, progress_loaded, (jfloat) share);
    return !to->env->ExceptionCheck() && go_on;
}

bool call_read(uint64_t n_bytes, void * user_data) {
    const callback * to = (const callback *) user_data;
    const jboolean go_on = to->env->CallBooleanMethod(to->object, progress_read, (jlong) n_bytes);
    return !to->env->ExceptionCheck() && go_on;
}

bool call_token(const pmpd_token * token, void * user_data) {
    const callback * to = (const callback *) user_data;
    jbyteArray bytes = to_bytes(to->env, token->bytes, (size_t) token->n_bytes);
    if (bytes == nullptr) {
        return false;
    }
    const jboolean go_on = to->env->CallBooleanMethod(
            to->object, sink_token, (jint) token->id, (jint) token->precision, (jfloat) token->probability,
            (jint) token->finish, (jboolean) token->drafted, bytes);
    if (to->env->ExceptionCheck()) {
        return false;
    }
    to->env->DeleteLocalRef(bytes); // all tokens of an answer come in one native call
    return go_on;
}

// Call a function that writes up to a number of token ids and returns how many there are, or a status
template <typename F> jintArray token_ids(JNIEnv * env, F && write) {
    std::vector<int32_t> tokens(256);
    int32_t n = write(tokens.data(), (int32_t) tokens.size());
    if (n > (int32_t) tokens.size()) {
        tokens.resize((size_t) n);
        n = write(tokens.data(), n);
    }
    if (n < 0) {
        throw_status(env, n);
        return nullptr;
    }
    tokens.resize((size_t) n);
    return to_ints(env, tokens);
}

#ifdef __ANDROID__
void log_to_android(int32_t level, const char * line, void *) {
    const bool is_error = level == 4; // GGML_LOG_LEVEL_ERROR
    __android_log_write(is_error ? ANDROID_LOG_ERROR : ANDROID_LOG_WARN, "edgellm", line);
}
#endif

const pmpd_bundle * as_bundle(jlong handle) {
    return (const pmpd_bundle *) (intptr_t) handle;
}

pmpd_session * as_session(jlong handle) {
    return (pmpd_session *) (intptr_t) handle;
}

} // namespace

#define NATIVE(type, name) extern "C" JNIEXPORT type JNICALL Java_pmpd_edgellm_Native_##name

extern "C" JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM * vm, void *) {
    JNIEnv * env = nullptr;
    if (vm->GetEnv((void **) &env, JNI_VERSION_1_6) != JNI_OK) {
        return JNI_ERR;
    }
    // Here, as this thread has the app's class loader; others may have only the system's
    jclass found_native = env->FindClass("pmpd/edgellm/Native");
    jclass found_bytes  = found_native == nullptr ? nullptr : env->FindClass("[B");
    jclass token        = found_bytes  == nullptr ? nullptr : env->FindClass("pmpd/edgellm/TokenSink");
    jclass loaded       = token        == nullptr ? nullptr : env->FindClass("pmpd/edgellm/LoadProgress");
    jclass read         = loaded       == nullptr ? nullptr : env->FindClass("pmpd/edgellm/VerifyProgress");
    if (read == nullptr) {
        return JNI_ERR;
    }
    native_class    = (jclass) env->NewGlobalRef(found_native);
    bytes_class     = (jclass) env->NewGlobalRef(found_bytes);
    native_fail     = env->GetStaticMethodID(found_native, "fail", "(I[B)V");
    sink_token      = native_fail     == nullptr ? nullptr : env->GetMethodID(token, "token", "(IIFIZ[B)Z");
    progress_loaded = sink_token      == nullptr ? nullptr : env->GetMethodID(loaded, "loaded", "(F)Z");
    progress_read   = progress_loaded == nullptr ? nullptr : env->GetMethodID(read, "read", "(J)Z");
    if (progress_read == nullptr) {
        return JNI_ERR;
    }
#ifdef __ANDROID__
    pmpd_log_set(log_to_android, nullptr);
#endif
    return JNI_VERSION_1_6;
}

// The backends lie beside libpmpd, and not beside the program, which is the runtime's own
NATIVE(void, loadBackends)(JNIEnv * env, jclass) {
    guarded(env, [&]() {
        Dl_info library = {};
        dladdr((const void *) &pmpd_load_backends, &library);
        const std::string path = library.dli_fname == nullptr ? "" : library.dli_fname;
        const int32_t status = pmpd_load_backends(path.substr(0, path.rfind('/')).c_str());
        if (status != PMPD_OK) {
            throw_status(env, status);
        }
    });
}

NATIVE(jint, fastCores)(JNIEnv *, jclass) {
    return pmpd_fast_cores();
}

//
// Bundle
//

NATIVE(jlong, bundleOpen)(JNIEnv * env, jclass, jbyteArray path) {
    return guarded(env, [&]() -> jlong {
        pmpd_bundle * bundle = nullptr;
        const int32_t status = pmpd_bundle_open(text(env, path).c_str(), &bundle);
        if (status != PMPD_OK) {
            throw_status(env, status);
            return 0;
        }
        return (jlong) (intptr_t) bundle;
    });
}

NATIVE(void, bundleFree)(JNIEnv *, jclass, jlong bundle) {
    pmpd_bundle_free((pmpd_bundle *) (intptr_t) bundle);
}

NATIVE(jobjectArray, bundleTexts)(JNIEnv * env, jclass, jlong handle) {
    return guarded(env, [&]() -> jobjectArray {
        const pmpd_bundle * bundle = as_bundle(handle);
        const std::string values[] = {
            pmpd_bundle_name(bundle), pmpd_bundle_architecture(bundle), pmpd_bundle_schedule(bundle),
        };
        jobjectArray array = env->NewObjectArray(3, bytes_class, nullptr);
        for (jsize i = 0; array != nullptr && i < 3; i++) {
            jbyteArray bytes = to_bytes(env, values[i].data(), values[i].size());
            if (bytes == nullptr) {
                return nullptr;
            }
            env->SetObjectArrayElement(array, i, bytes);
        }
        return array;
    });
}

NATIVE(jlongArray, bundleNumbers)(JNIEnv * env, jclass, jlong handle) {
    const pmpd_bundle * bundle = as_bundle(handle);
    const jlong values[] = {
        (jlong) pmpd_bundle_parameters(bundle),
        (jlong) pmpd_bundle_context_length(bundle),
        (jlong) pmpd_bundle_bytes(bundle),
        (jlong) pmpd_bundle_prefill(bundle),
        (jlong) pmpd_bundle_max_new_tokens(bundle),
        (jlong) pmpd_bundle_has_predictor(bundle),
    };
    jlongArray array = env->NewLongArray(6);
    if (array != nullptr) {
        env->SetLongArrayRegion(array, 0, 6, values);
    }
    return array;
}

NATIVE(jintArray, bundlePrecisions)(JNIEnv * env, jclass, jlong handle) {
    return guarded(env, [&]() -> jintArray {
        const pmpd_bundle * bundle = as_bundle(handle);
        std::vector<int32_t> precisions;
        for (int32_t i = 0; i < pmpd_bundle_n_levels(bundle); i++) {
            precisions.push_back(pmpd_bundle_precision(bundle, i));
        }
        return to_ints(env, precisions);
    });
}

NATIVE(jdoubleArray, bundleBpw)(JNIEnv * env, jclass, jlong handle) {
    const pmpd_bundle * bundle = as_bundle(handle);
    const int32_t n_levels = pmpd_bundle_n_levels(bundle);
    jdoubleArray array = env->NewDoubleArray(n_levels);
    for (int32_t i = 0; array != nullptr && i < n_levels; i++) {
        const jdouble bpw = pmpd_bundle_bpw(bundle, i);
        env->SetDoubleArrayRegion(array, i, 1, &bpw);
    }
    return array;
}

NATIVE(void, bundleVerify)(JNIEnv * env, jclass, jlong bundle, jobject progress) {
    callback to = { env, progress };
    const int32_t status = pmpd_bundle_verify(as_bundle(bundle), call_read, &to);
    if (status != PMPD_OK) {
        throw_status(env, status);
    }
}

NATIVE(jlong, estimateMemory)
(JNIEnv * env, jclass, jlong bundle, jbyteArray method, jbyteArray scheduler, jintArray numbers) {
    return guarded(env, [&]() -> jlong {
        const options given(env, method, scheduler, numbers);
        uint64_t n_bytes = 0;
        const int32_t status = pmpd_estimate_memory(as_bundle(bundle), &given.values, &n_bytes);
        if (status != PMPD_OK) {
            throw_status(env, status);
        }
        return (jlong) n_bytes;
    });
}

//
// Session
//

NATIVE(jlong, sessionOpen)
(JNIEnv * env, jclass, jlong bundle, jbyteArray method, jbyteArray scheduler, jintArray numbers, jobject progress) {
    return guarded(env, [&]() -> jlong {
        const options given(env, method, scheduler, numbers);
        callback to = { env, progress };
        pmpd_session * session = nullptr;
        const int32_t status = pmpd_session_open(as_bundle(bundle), &given.values, call_loaded, &to, &session);
        if (status != PMPD_OK) {
            throw_status(env, status);
            return 0;
        }
        return (jlong) (intptr_t) session;
    });
}

NATIVE(void, sessionFree)(JNIEnv *, jclass, jlong session) {
    pmpd_session_free(as_session(session));
}

NATIVE(void, sessionConfigure)
(JNIEnv * env, jclass, jlong session, jbyteArray method, jbyteArray scheduler, jintArray numbers) {
    guarded(env, [&]() {
        const options given(env, method, scheduler, numbers);
        const int32_t status = pmpd_session_configure(as_session(session), &given.values);
        if (status != PMPD_OK) {
            throw_status(env, status);
        }
    });
}

NATIVE(jint, sessionContextTokens)(JNIEnv *, jclass, jlong session) {
    return pmpd_session_n_ctx(as_session(session));
}

NATIVE(void, sessionClear)(JNIEnv * env, jclass, jlong session) {
    const int32_t status = pmpd_session_clear(as_session(session));
    if (status != PMPD_OK) {
        throw_status(env, status);
    }
}

NATIVE(void, sessionCancel)(JNIEnv *, jclass, jlong session) {
    pmpd_session_cancel(as_session(session));
}

NATIVE(jintArray, applyChatTemplate)
(JNIEnv * env, jclass, jlong session, jobjectArray roles, jobjectArray contents) {
    return guarded(env, [&]() -> jintArray {
        const std::vector<std::string> role_texts    = texts(env, roles);
        const std::vector<std::string> content_texts = texts(env, contents);
        std::vector<pmpd_message> messages;
        for (size_t i = 0; i < role_texts.size(); i++) {
            messages.push_back({ role_texts[i].c_str(), content_texts[i].c_str() });
        }
        return token_ids(env, [&](int32_t * tokens, int32_t n_tokens_max) {
            return pmpd_apply_chat_template(
                    as_session(session), messages.data(), messages.size(), tokens, n_tokens_max);
        });
    });
}

NATIVE(jbyteArray, chatStop)(JNIEnv * env, jclass, jlong session) {
    const char * stop = pmpd_chat_stop(as_session(session));
    return to_bytes(env, stop, std::char_traits<char>::length(stop));
}

NATIVE(jintArray, tokenize)
(JNIEnv * env, jclass, jlong session, jbyteArray bytes, jboolean add_special, jboolean parse_special) {
    return guarded(env, [&]() -> jintArray {
        const std::string value = text(env, bytes);
        return token_ids(env, [&](int32_t * tokens, int32_t n_tokens_max) {
            return pmpd_tokenize(
                    as_session(session), value.c_str(), (int32_t) value.size(), add_special, parse_special, tokens,
                    n_tokens_max);
        });
    });
}

NATIVE(void, generate)
(JNIEnv * env, jclass, jlong session, jintArray tokens, jint max_new_tokens, jfloat temperature, jint top_k,
 jfloat top_p, jfloat min_p, jfloat repeat_penalty, jint seed, jobjectArray stop, jobject sink) {
    guarded(env, [&]() {
        std::vector<int32_t> prompt((size_t) env->GetArrayLength(tokens));
        env->GetIntArrayRegion(tokens, 0, (jsize) prompt.size(), (jint *) prompt.data());
        const std::vector<std::string> stop_texts = texts(env, stop);
        std::vector<const char *> stop_pointers;
        for (const std::string & value : stop_texts) {
            stop_pointers.push_back(value.c_str());
        }
        callback to = { env, sink };

        pmpd_request request   = {};
        request.tokens         = prompt.data();
        request.n_tokens       = (int32_t) prompt.size();
        request.max_new_tokens = max_new_tokens;
        request.sampling       = { temperature, top_k, top_p, min_p, repeat_penalty, (uint32_t) seed };
        request.stop           = stop_pointers.data();
        request.n_stop         = stop_pointers.size();
        request.callback       = call_token;
        request.user_data      = &to;
        const int32_t status = pmpd_generate(as_session(session), &request);
        if (status != PMPD_OK) {
            throw_status(env, status);
        }
    });
}

NATIVE(jdoubleArray, sessionStats)(JNIEnv * env, jclass, jlong session) {
    const pmpd_stats stats = pmpd_session_stats(as_session(session));
    const jdouble values[] = {
        (jdouble) stats.prompt_tokens,
        (jdouble) stats.reused_tokens,
        (jdouble) stats.prefill_precision,
        (jdouble) stats.decode_steps,
        (jdouble) stats.n_switches,
        stats.prefill_seconds,
        stats.decode_seconds,
        stats.average_bitwidth,
        stats.average_bpw,
        (jdouble) stats.drafted_tokens,
        (jdouble) stats.kept_tokens,
        (jdouble) stats.verifications,
        stats.tokens_per_verification,
        stats.drafting_seconds,
        stats.verifying_seconds,
    };
    jdoubleArray array = env->NewDoubleArray(15);
    if (array != nullptr) {
        env->SetDoubleArrayRegion(array, 0, 15, values);
    }
    return array;
}
