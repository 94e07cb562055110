// Timers that know their run, so that an interrupt ends loops that sleep between their rounds.

import timers from 'node:timers'
import promises from 'node:timers/promises'
import { syncBuiltinESMExports } from 'node:module'
import { scope } from './output.mjs'

const STARTS = {
  setTimeout: 'clearTimeout',
  setInterval: 'clearInterval',
  setImmediate: 'clearImmediate',
}
// Timers of a run that are remembered. More are not ended by an interrupt.
const LIMIT = 10000

// Remembers the timers of the run that calls, while it runs.
function remember(run, clear, timer) {
  if (!run || run.settled) return
  if (run.timers.size >= LIMIT) run.timers.clear()
  run.timers.set(timer, clear)
}

function wrap(name) {
  const start = timers[name]
  const clear = timers[STARTS[name]]
  const replacement = {
    [name](callback, ...rest) {
      const run = scope.getStore()
      if (run?.cancelled) return start(() => {}, ...rest)
      const timer = start(callback, ...rest)
      remember(run, clear, timer)
      return timer
    },
  }[name]
  for (const symbol of Object.getOwnPropertySymbols(start)) {
    Object.defineProperty(replacement, symbol, Object.getOwnPropertyDescriptor(start, symbol))
  }
  globalThis[name] = replacement
  timers[name] = replacement
}

// Adds the run's signal to a sleep. A signal of the caller's is kept.
function wrapSleep(name, optionsAt) {
  const sleep = promises[name]
  promises[name] = (...args) => {
    const run = scope.getStore()
    if (run && !run.settled && !args[optionsAt]?.signal) {
      args[optionsAt] = { ...args[optionsAt], signal: run.abort.signal }
    }
    return sleep(...args)
  }
}

export function installTimers() {
  for (const name of Object.keys(STARTS)) wrap(name)
  wrapSleep('setTimeout', 2)
  wrapSleep('setImmediate', 1)
  syncBuiltinESMExports()
}

// Ends all timers and sleeps of a run.
export function cancelTimers(run) {
  run.cancelled = true
  for (const [timer, clear] of run.timers) clear(timer)
  run.timers.clear()
  run.abort.abort()
}
