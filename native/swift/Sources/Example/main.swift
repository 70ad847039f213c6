// One answer of a bundle, and what it took:  swift run Example BUNDLE MESSAGE
// Not built yet where this was written.

import CPmpd
import Foundation

func check(_ status: Int32) {
    guard status != PMPD_OK.rawValue else { return }
    FileHandle.standardError.write(Data((String(cString: pmpd_error()) + "\n").utf8))
    exit(1)
}

func chatTokens(_ session: OpaquePointer, _ message: String) -> [Int32] {
    "user".withCString { role in
        message.withCString { content in
            var turn = pmpd_message(role: role, content: content)
            var tokens = [Int32](repeating: 0, count: Int(pmpd_session_n_ctx(session)))
            let n = pmpd_apply_chat_template(session, &turn, 1, &tokens, Int32(tokens.count))
            if n < 0 { check(n) }
            return Array(tokens.prefix(Int(n)))
        }
    }
}

guard CommandLine.arguments.count == 3 else {
    print("usage: Example BUNDLE MESSAGE")
    exit(2)
}
var bundle: OpaquePointer?
var session: OpaquePointer?
var options = pmpd_default_options()
check(pmpd_bundle_open(CommandLine.arguments[1], &bundle))
check(pmpd_session_open(bundle, &options, nil, nil, &session))
defer {
    pmpd_session_free(session)
    pmpd_bundle_free(bundle)
}

let tokens = chatTokens(session!, CommandLine.arguments[2])
tokens.withUnsafeBufferPointer { prompt in
    var request = pmpd_request()
    request.tokens = prompt.baseAddress
    request.n_tokens = Int32(prompt.count)
    request.sampling = pmpd_default_sampling()
    request.callback = { token, _ in
        let bytes = UnsafeRawBufferPointer(start: token!.pointee.bytes, count: Int(token!.pointee.n_bytes))
        FileHandle.standardOutput.write(Data(bytes)) // bytes: a character may be spread over tokens
        return true
    }
    check(pmpd_generate(session, &request))
}
let stats = pmpd_session_stats(session)
print("\naverage bitwidth \(stats.average_bitwidth), \(Double(stats.decode_steps) / stats.decode_seconds) tokens/s")
