package pmpd.edgellm

/**
 * What can go wrong, one class for each thing that a program does something else about. The message is one line that
 * says what is wrong and where; the native library's own where it was that which failed.
 */
sealed class EdgeLlmException(message: String, cause: Throwable? = null) : Exception(message, cause)

/** A value that makes no sense, or does not fit the bundle. */
class InvalidArgumentException(message: String) : EdgeLlmException(message)

/** Not a bundle, damaged, or of a version that this library does not read. */
class BundleException(message: String) : EdgeLlmException(message)

/** The device has not the memory that the bundle needs, or did not give it. */
class NotEnoughMemoryException(message: String) : EdgeLlmException(message)

/** The prompt leaves no room for an answer in the session's context. */
class ContextFullException(message: String) : EdgeLlmException(message)

/** The session is generating: one answer at a time. The running one is not affected. */
class SessionBusyException(message: String) : EdgeLlmException(message)

/** The session was closed, before the call or while it ran. */
class SessionClosedException(message: String) : EdgeLlmException(message)

/** llama.cpp failed. */
class NativeFailureException(message: String) : EdgeLlmException(message)

/** The storage has not the room that an import needs. */
class NotEnoughStorageException(message: String) : EdgeLlmException(message)

/** An import could not read its source, or could not write. */
class ImportException(message: String, cause: Throwable? = null) : EdgeLlmException(message, cause)
