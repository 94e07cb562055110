// Calls of Node's experimental functions, which otherwise warn on the user's stderr.

// Calls a function without the warnings that it emits.
export function quietly(call) {
  const emitWarning = process.emitWarning
  process.emitWarning = () => {}
  try {
    return call()
  } finally {
    process.emitWarning = emitWarning
  }
}
