/* A chat with a bundle in C: each further argument is a message, and what is said before it is kept.
 *
 *     pmpd-chat BUNDLE [OPTION...] TEXT...
 *
 * Options: --method M, --scheduler S, --high-steps N, --draft-tokens N, --max-new-tokens N, --temperature T, --seed N.
 *
 * Answers go to standard output, what they took to standard error. */

#include "pmpd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct answer {
    char * text;
    size_t size;
};

static bool add_token(const struct pmpd_token * token, void * user_data) {
    struct answer * answer = (struct answer *) user_data;
    char *          text   = (char *) realloc(answer->text, answer->size + (size_t) token->n_bytes + 1);
    if (!text) {
        return false;
    }
    memcpy(text + answer->size, token->bytes, (size_t) token->n_bytes);
    answer->text                = text;
    answer->size               += (size_t) token->n_bytes;
    answer->text[answer->size]  = '\0';
    fwrite(token->bytes, 1, (size_t) token->n_bytes, stdout);
    fflush(stdout);
    return true;
}

static void print_stats(const struct pmpd_session * session) {
    const struct pmpd_stats stats = pmpd_session_stats(session);
    const double            speed = stats.decode_seconds > 0.0 ? stats.decode_steps/stats.decode_seconds : 0.0;
    fprintf(stderr, "%d tokens of prompt, %d of them kept; ", (int) stats.prompt_tokens, (int) stats.reused_tokens);
    fprintf(stderr, "%d decode steps, %.1f/s, ", (int) stats.decode_steps, speed);
    fprintf(stderr, "%.2f bits on average, %d switches\n", stats.average_bitwidth, (int) stats.n_switches);
    if (stats.verifications > 0) {
        const double share = 100.0*stats.kept_tokens/stats.drafted_tokens;
        fprintf(stderr, "%d drafts, %.0f%% of them kept; ", (int) stats.drafted_tokens, share);
        fprintf(stderr, "%.2f tokens for each verification\n", stats.tokens_per_verification);
    }
}

static int fail(void) {
    fprintf(stderr, "pmpd-chat: %s\n", pmpd_error());
    return 1;
}

/* answer the last of the messages, and put the answer behind it */
static int say(
        struct pmpd_session * session,
        struct pmpd_request * request,
        struct pmpd_message * messages,
        size_t                n_messages) {
    struct answer answer   = { NULL, 0 };
    int32_t       n_tokens = pmpd_apply_chat_template(session, messages, n_messages, NULL, 0);
    int32_t *     tokens   = n_tokens < 0 ? NULL : (int32_t *) malloc((size_t) n_tokens*sizeof(int32_t));
    if (!tokens) {
        return fail();
    }
    pmpd_apply_chat_template(session, messages, n_messages, tokens, n_tokens);
    request->tokens    = tokens;
    request->n_tokens  = n_tokens;
    request->user_data = &answer;
    const int32_t status = pmpd_generate(session, request);
    free(tokens);
    printf("\n");
    if (status != PMPD_OK) {
        free(answer.text);
        return fail();
    }
    print_stats(session);
    messages[n_messages].role    = "assistant";
    messages[n_messages].content = answer.text;
    return 0;
}

static int converse(struct pmpd_session * session, struct pmpd_request * request, char ** texts, int n_texts) {
    struct pmpd_message * messages = (struct pmpd_message *) calloc((size_t) n_texts, 2*sizeof(struct pmpd_message));
    const char *          stop     = pmpd_chat_stop(session);
    int                   failed   = messages == NULL;
    request->stop     = &stop;
    request->n_stop   = 1;
    request->callback = add_token;
    for (int i = 0; i < n_texts && !failed; ++i) {
        messages[2*i].role    = "user";
        messages[2*i].content = texts[i];
        failed                = say(session, request, messages, (size_t) (2*i + 1));
    }
    for (int i = 0; i < n_texts && messages; ++i) {
        free((void *) messages[2*i + 1].content);
    }
    free(messages);
    return failed;
}

/* the number of arguments that are options; -1 where one is unknown */
static int read_options(int argc, char ** argv, struct pmpd_options * options, struct pmpd_request * request) {
    int i = 0;
    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        const char * name  = argv[i] + 2;
        const char * value = argv[i + 1];
        if (strcmp(name, "method") == 0) {
            options->method = value;
        } else if (strcmp(name, "scheduler") == 0) {
            options->scheduler = value;
        } else if (strcmp(name, "high-steps") == 0) {
            options->high_steps = atoi(value);
        } else if (strcmp(name, "draft-tokens") == 0) {
            options->draft_tokens = atoi(value);
        } else if (strcmp(name, "max-new-tokens") == 0) {
            request->max_new_tokens = atoi(value);
        } else if (strcmp(name, "temperature") == 0) {
            request->sampling.temperature = (float) atof(value);
        } else if (strcmp(name, "seed") == 0) {
            request->sampling.seed = (uint32_t) strtoul(value, NULL, 10);
        } else {
            return -1;
        }
    }
    return i;
}

int main(int argc, char ** argv) {
    struct pmpd_options   options = pmpd_default_options();
    struct pmpd_request   request = { 0 };
    struct pmpd_bundle  * bundle  = NULL;
    struct pmpd_session * session = NULL;
    int                   failed  = 1;

    request.sampling = pmpd_default_sampling();
    const int n_options = argc < 3 ? -1 : read_options(argc - 2, argv + 2, &options, &request);
    if (n_options < 0 || argc - 2 == n_options) {
        fprintf(stderr, "usage: pmpd-chat BUNDLE [--method M] [--scheduler S] [--high-steps N] [--draft-tokens N] "
                        "[--max-new-tokens N] [--temperature T] [--seed N] TEXT...\n");
        return 2;
    }
    if (pmpd_load_backends(NULL) != PMPD_OK || pmpd_bundle_open(argv[1], &bundle) != PMPD_OK ||
        pmpd_session_open(bundle, &options, NULL, NULL, &session) != PMPD_OK) {
        fail();
    } else {
        failed = converse(session, &request, argv + 2 + n_options, argc - 2 - n_options);
    }
    pmpd_session_free(session);
    pmpd_bundle_free(bundle);
    return failed;
}
