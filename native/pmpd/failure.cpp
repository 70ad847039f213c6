#include "failure.h"

#include <cstring>

static constexpr size_t ERROR_SIZE = 1024; // no allocation: there may be no memory for it

static thread_local char error_text[ERROR_SIZE];

// by its first byte
static size_t expected_size(unsigned char lead) {
    return lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
}

// bytes of the UTF-8 character that text begins with; 0 where it begins with none
static size_t character_size(const char * text) {
    const unsigned char lead = text[0];
    const size_t        size = expected_size(lead);
    for (size_t i = 1; i < size; ++i) { // ends at the latest at the text's end, as 0 is no continuation
        if (((unsigned char) text[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    const unsigned char second       = size > 1 ? text[1] : 0;
    const bool          is_too_long  = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
    const bool          is_surrogate = lead == 0xED && second > 0x9F;
    const bool          is_too_large = lead == 0xF4 && second > 0x8F;
    return is_too_long || is_surrogate || is_too_large ? 0 : size;
}

// Files' and callers' own words may hold anything: the message is one line of valid UTF-8 all the same
void pmpd_error_set(const char * message) {
    size_t n = 0;
    while (*message) {
        const size_t size       = character_size(message);
        const bool   is_control = size == 1 && ((unsigned char) *message < ' ' || *message == 0x7f);
        if (n + size + 1 > ERROR_SIZE - 1) {
            break;
        }
        if (size == 0 || is_control) {
            error_text[n++] = is_control ? ' ' : '?';
            message += 1;
        } else {
            std::memcpy(error_text + n, message, size);
            n += size;
            message += size;
        }
    }
    error_text[n] = '\0';
}

const char * pmpd_error(void) {
    return error_text;
}
