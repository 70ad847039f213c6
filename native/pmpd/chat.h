// From messages to the text of a prompt, with the chat template that the model's file carries.

#pragma once

#include "pmpd.h"

#include <functional>
#include <string>
#include <vector>

struct llama_model;
struct llama_vocab;

// Token ids of a text
std::vector<int32_t> pmpd_tokens_of(
        const llama_vocab * vocab,
        const std::string & text,
        bool                add_special,
        bool                parse_special);

// Token ids of a conversation with the beginning of an answer; fails with PMPD_ARGUMENT where the template refuses it, or
// does not come to an end, and with PMPD_CANCELLED where is_cancelled, which is asked from time to time, says so
// A model without a template gets the messages as lines of plain text, to be continued
std::vector<int32_t> pmpd_render_chat(
        const llama_model           * model,
        const struct pmpd_message   * messages,
        size_t                        n_messages,
        const std::function<bool()> & is_cancelled);

// What ends an answer of a chat beside the model's end tokens; "" where there is no template
std::string pmpd_chat_stop_text(const llama_model * model);
