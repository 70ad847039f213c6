#include "chat.h"

#include "failure.h"

#include "llama.h"

#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "jinja/value.h"

std::vector<int32_t> pmpd_tokens_of(
        const llama_vocab * vocab,
        const std::string & text,
        bool                add_special,
        bool                parse_special) {
    if (text.size() > INT32_MAX/2) {
        throw pmpd_failure(PMPD_ARGUMENT, "a text of " + std::to_string(text.size()) + " bytes: shorten it");
    }
    std::vector<int32_t> tokens(text.size() + 2); // hardly ever too few
    const auto           tokenize = [&] {
        const int32_t n_text = (int32_t) text.size();
        const int32_t n_max  = (int32_t) tokens.size();
        return llama_tokenize(vocab, text.data(), n_text, tokens.data(), n_max, add_special, parse_special);
    };
    int32_t n = tokenize();
    if (n < 0 && n != INT32_MIN) {
        tokens.resize(-n);
        n = tokenize();
    }
    if (n < 0) {
        throw pmpd_failure(PMPD_FAILED, "a text of " + std::to_string(text.size()) + " bytes cannot be tokenised");
    }
    tokens.resize(n);
    return tokens;
}

static std::string text_of(const llama_vocab * vocab, int32_t token) {
    return token == LLAMA_TOKEN_NULL ? "" : llama_vocab_get_text(vocab, token);
}

// What transformers gives to a template, as llama_cpp's formatter does
static jinja::value values_of(const struct pmpd_message * messages, size_t n_messages) {
    auto list = jinja::mk_val<jinja::value_array>();
    for (size_t i = 0; i < n_messages; ++i) {
        auto message = jinja::mk_val<jinja::value_object>();
        message->insert("role",    jinja::mk_val<jinja::value_string>(std::string(messages[i].role)));
        message->insert("content", jinja::mk_val<jinja::value_string>(std::string(messages[i].content)));
        list->push_back(message);
    }
    return list;
}

// Parser and interpreter call themselves for what is nested or chained, with no limit of their own, and a bundle may be
// anybody's. Templates in use are less than 20 deep
static constexpr int MAX_DEPTH  = 100;  // of brackets and blocks; elif is a block in the else of another
static constexpr int MAX_LENGTH = 1000; // tokens of an expression or a statement

// And they go on as long as a template wants. Those in use take less than 100 steps for a message
static constexpr size_t MAX_STEPS      = 1000000;
static constexpr size_t MAX_CALL_DEPTH = 200; // up to 1.5 KB of the calling thread's stack each

static int brackets(jinja::token::type type) {
    switch (type) {
        case jinja::token::open_paren:
        case jinja::token::open_square_bracket:
        case jinja::token::open_curly_bracket:
            return 1;
        case jinja::token::close_paren:
        case jinja::token::close_square_bracket:
        case jinja::token::close_curly_bracket:
            return -1;
        default:
            return 0;
    }
}

// Whether the statement that begins at a token has an end of its own
static bool is_block(const std::vector<jinja::token> & tokens, size_t i) {
    const std::string name = tokens[i].value;
    if (name != "set") {
        return name == "if" || name == "for" || name == "macro" || name == "call" || name == "filter" || name == "generation";
    }
    while (i < tokens.size() && tokens[i].t != jinja::token::close_statement && tokens[i].t != jinja::token::equals) {
        ++i;
    }
    return i < tokens.size() && tokens[i].t == jinja::token::close_statement;
}

static void check_depth(const std::vector<jinja::token> & tokens) {
    std::vector<int> blocks; // how deep each open one leads: 1, and its elifs
    int              depth  = 0;
    int              length = 0;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
        const bool is_statement = tokens[i].t == jinja::token::open_statement;
        const bool is_end       = is_statement && tokens[i + 1].value.compare(0, 3, "end") == 0;
        const bool is_elif      = is_statement && tokens[i + 1].value == "elif";
        if (is_statement && is_block(tokens, i + 1)) {
            blocks.push_back(1);
            ++depth;
        } else if (is_elif && !blocks.empty()) {
            ++blocks.back();
            ++depth;
        } else if (is_end && !blocks.empty()) {
            depth -= blocks.back();
            blocks.pop_back();
        }
        depth += brackets(tokens[i].t);
        length = is_statement || tokens[i].t == jinja::token::open_expression ? 0 : length + 1;
        if (depth > MAX_DEPTH || length > MAX_LENGTH) {
            throw std::runtime_error("it is nested too deep");
        }
    }
}

static std::string render(
        const char                  * text,
        const llama_vocab           * vocab,
        const struct pmpd_message   * messages,
        size_t                        n_messages,
        const std::function<bool()> & is_cancelled) {
    jinja::lexer              lexer;
    const jinja::lexer_result tokens  = lexer.tokenize(text);
    check_depth(tokens.tokens);
    const jinja::program      program = jinja::parse_from_tokens(tokens);

    const std::string bos = text_of(vocab, llama_vocab_bos(vocab));
    const std::string eos = text_of(vocab, llama_vocab_eos(vocab));
    jinja::context    context(tokens.source);
    context.limits = std::make_shared<jinja::limits>();
    context.limits->max_steps    = MAX_STEPS;
    context.limits->max_depth    = MAX_CALL_DEPTH;
    context.limits->is_cancelled = is_cancelled;
    context.set_val("messages",              values_of(messages, n_messages));
    context.set_val("bos_token",             jinja::mk_val<jinja::value_string>(bos));
    context.set_val("eos_token",             jinja::mk_val<jinja::value_string>(eos));
    context.set_val("add_generation_prompt", jinja::mk_val<jinja::value_bool>(true));
    for (const char * name : { "functions", "function_call", "tools", "tool_choice" }) {
        context.set_val(name, jinja::mk_val<jinja::value_none>());
    }
    jinja::runtime runtime(context);
    return jinja::runtime::gather_string_parts(runtime.execute(program))->as_string().str();
}

static std::string lines_of(const struct pmpd_message * messages, size_t n_messages) {
    std::string text;
    for (size_t i = 0; i < n_messages; ++i) {
        text += (i > 0 ? "\n" : "") + std::string(messages[i].content);
    }
    return text;
}

// jinja's errors have several lines: what, then where; or, from the interpreter, where, then what
static std::string reason_of(const std::string & error) {
    const std::string mark  = "\nError: ";
    const size_t      found = error.rfind(mark);
    const std::string what  = found == std::string::npos ? error : error.substr(found + mark.size());
    return what.substr(0, what.find('\n'));
}

std::vector<int32_t> pmpd_render_chat(
        const llama_model           * model,
        const struct pmpd_message   * messages,
        size_t                        n_messages,
        const std::function<bool()> & is_cancelled) {
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const char *        text  = llama_model_chat_template(model, nullptr);
    if (!text) {
        return pmpd_tokens_of(vocab, lines_of(messages, n_messages), true, false);
    }
    std::string prompt;
    try {
        prompt = render(text, vocab, messages, n_messages, is_cancelled);
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & error) { // all kinds mean that the conversation does not suit the template
        if (is_cancelled()) {
            throw pmpd_failure(PMPD_CANCELLED, "the answer was cancelled");
        }
        const std::string why = reason_of(error.what());
        const std::string what = "the model's chat template refuses the conversation (" + why + ")";
        throw pmpd_failure(PMPD_ARGUMENT, what + ": try without a system message");
    }
    return pmpd_tokens_of(vocab, prompt, false, true); // the template writes BOS where it wants it
}

std::string pmpd_chat_stop_text(const llama_model * model) {
    const llama_vocab * vocab = llama_model_get_vocab(model);
    return llama_model_chat_template(model, nullptr) ? text_of(vocab, llama_vocab_eos(vocab)) : "";
}
