// Runs JavaScript or TypeScript for one context: `node host.mjs javascript|typescript`.
//
// Commands arrive as JSON lines on descriptor 4 (read by `watchdog.mjs`), events leave on 3. The
// code runs in the main thread by V8's own prompt mode, so that declarations persist.

import inspector from 'node:inspector'
import util from 'node:util'
import { promiseHooks } from 'node:v8'
import { Worker } from 'node:worker_threads'
import { emit, emitText, installStreams, mark, scope, setMarker, setNewest } from './output.mjs'
import { addMap, installStacks } from './stacks.mjs'
import { installCrypto } from './crypto.mjs'
import { installRandom, seed } from './random.mjs'
import { installLoader } from './loader.mjs'
import { rewrite } from './rewrite.mjs'
import { stripTypes } from './typescript.mjs'
import { applyCapsule, override } from './environment.mjs'
import { cancelTimers, installTimers } from './timers.mjs'
import { bundle, display, failure } from './show.mjs'
import { complete, rememberGlobals, variables } from './inspect.mjs'

const TYPESCRIPT = process.argv[2] === 'typescript'
const INTERRUPTED = { name: 'Interrupted', value: 'the execution was interrupted', traceback: '' }

const session = new inspector.Session()
session.connect()

// The newest run: `{ number, settled, cancelled, timers, abort, restore }`.
let newest = { number: 0, settled: true }
let taken

const TAKE = Symbol('take')
Object.defineProperty(globalThis, Symbol.for('wrenn.take'), {
  value: (value) => {
    taken = value
  },
})

// Gets the value behind the inspector's description of it.
function take(remote) {
  if (remote.unserializableValue !== undefined) return unserializable(remote.unserializableValue)
  if (remote.objectId === undefined) return remote.value
  taken = TAKE
  session.post('Runtime.callFunctionOn', {
    functionDeclaration: 'function () { "use strict"; globalThis[Symbol.for("wrenn.take")](this) }',
    objectId: remote.objectId,
  })
  const value = taken
  taken = undefined
  return value === TAKE ? undefined : value
}

function unserializable(text) {
  return text.endsWith('n') ? BigInt(text.slice(0, -1)) : Number(text)
}

// Evaluates code and waits for its end.
function evaluate(expression) {
  const options = { expression, replMode: true, awaitPromise: true, objectGroup: 'cell' }
  let settle
  const done = new Promise((resolve, reject) => {
    settle = { resolve, reject }
  })
  const release = holdPromise()
  session.post('Runtime.evaluate', options, (error, answer) => {
    release()
    if (error) settle.reject(new Thrown(INTERRUPTED))
    else if (answer.exceptionDetails) settle.reject(thrown(answer.exceptionDetails, expression))
    else settle.resolve({ value: take(answer.result) })
  })
  return done
}

// Keeps the promise of the next evaluation alive until it settles. If it were collected, the
// inspector would call this session's code in the middle of the collection, which is fatal.
const held = new Set()

function holdPromise() {
  let promise
  const stop = promiseHooks.onInit((first) => {
    stop()
    promise = first
    held.add(promise)
  })
  return () => {
    stop()
    held.delete(promise)
  }
}

// A value that was thrown, in a wrapper, since it can be anything.
class Thrown {
  constructor(value) {
    this.value = value
  }
}

function thrown(details, code) {
  const value = details.exception ? take(details.exception) : new Error(details.text)
  // An error of the code's own form has no frames, unlike one that code throws.
  if (value instanceof SyntaxError && !/\n {4}at /.test(value.stack)) {
    value.position = { line: details.lineNumber, column: details.columnNumber, code }
  }
  return new Thrown(value)
}

// Makes of a cell what V8 takes. The name of the cell stands in stack traces.
function prepare(run, code) {
  const name = `cell-${run.number}.${TYPESCRIPT ? 'ts' : 'js'}`
  const plain = TYPESCRIPT ? stripTypes(code) : { code }
  if (plain.map) addMap(name, plain.map)
  return `${rewrite(plain.code)}\n//# sourceURL=${name}`
}

async function execute(run, code) {
  try {
    let { value } = await evaluate(prepare(run, code))
    if (util.types.isPromise(value)) value = await value
    const data = value === undefined ? undefined : await bundle(value)
    if (data && !run.settled) emit({ data, main: true, run: run.number })
  } catch (error) {
    finish(run, describe(error))
  }
  finish(run)
}

function describe(error) {
  if (!(error instanceof Thrown)) return failure(error)
  return error.value === INTERRUPTED ? INTERRUPTED : failure(error.value)
}

// Ends a run once.
function finish(run, error) {
  if (run.settled) return
  run.settled = true
  session.post('Runtime.releaseObjectGroup', { objectGroup: 'cell' })
  run.restore()
  run.timers.clear()
  if (error) emit({ error, run: run.number })
  mark(run.number)
  emit({ ended: run.number })
}

function begin({ number, code, set, unset, envs, seed: bytes }) {
  finish(newest, INTERRUPTED)
  applyCapsule({ set, unset })
  if (bytes) seed(Buffer.from(bytes, 'hex'))
  const run = { number, settled: false, cancelled: false, timers: new Map() }
  run.abort = new AbortController()
  run.restore = override(envs)
  newest = run
  setNewest(number)
  scope.run(run, () => execute(run, code))
}

function interrupt(number) {
  if (newest.settled || newest.number !== number) return
  cancelTimers(newest)
  finish(newest, INTERRUPTED)
}

function answer({ id, complete: position, variables: all }) {
  try {
    if (position) emit({ answer: id, value: complete(session, take, position) })
    else if (all) emit({ answer: id, value: variables(session, take) })
  } catch {
    emit({ answer: id, value: null })
  }
}

function hello({ marker }) {
  setMarker(marker)
  if (newest.settled) mark(newest.number)
  emit({ state: { run: newest.number, busy: !newest.settled, version: process.version } })
}

function handle({ hello: greeting, run, ask }) {
  if (greeting) hello(greeting)
  else if (run) begin(run)
  else if (ask) answer(ask)
}

// Reports an error that no code of the user caught. The context lives on.
function report(error) {
  const { traceback, name, value } = failure(error)
  emitText('stderr', `Uncaught ${traceback || `${name}: ${value}`}\n`)
}

function install() {
  process.argv.splice(1)
  process.execArgv = []
  installStacks()
  installStreams()
  installCrypto()
  installRandom()
  installLoader()
  installTimers()
  const shown = { value: display, writable: true, configurable: true }
  Object.defineProperty(globalThis, 'display', shown)
  process.on('uncaughtException', report)
  process.on('unhandledRejection', report)
  // A signal to the group ends child processes; the watchdog interrupts this process's own code.
  process.on('SIGINT', () => {})
  rememberGlobals()
}

function start() {
  const seen = new Int32Array(new SharedArrayBuffer(4))
  const worker = new Worker(new URL('./watchdog.mjs', import.meta.url), {
    workerData: { seen: seen.buffer },
    stdout: true,
    stderr: true,
    execArgv: [],
  })
  worker.on('message', ({ sequence, interrupt: number, command }) => {
    Atomics.store(seen, 0, sequence)
    Atomics.notify(seen, 0)
    if (number === undefined) handle(command)
    else interrupt(number)
  })
  // A host that hears no commands is of no use.
  worker.on('error', () => process.exit(1))
  worker.on('exit', () => process.exit(1))
}

install()
start()
