// Output of the host: events as JSON lines on descriptor 3, and markers on 1 and 2.
//
// Each write is synchronous. A slow reader thus holds up the code that prints, and nothing is lost
// when the process ends.

import { writeSync } from 'node:fs'
import { Console } from 'node:console'
import { AsyncLocalStorage } from 'node:async_hooks'
import { Writable } from 'node:stream'
import { StringDecoder } from 'node:string_decoder'

const EVENTS = 3
// Length in UTF-16 units of the longest text in one event.
const PIECE = 64 * 1024

const write = writeSync
const stringify = JSON.stringify
const sleeper = new Int32Array(new SharedArrayBuffer(4))

// The run that caused the code to execute, as `{ number }`.
export const scope = new AsyncLocalStorage()

let newest = 0
let torn = false
let marker = ''

// Sets the run that output without a known cause belongs to.
export function setNewest(number) {
  newest = number
}

// Sets the secret text that separates the output of runs on descriptors 1 and 2.
export function setMarker(text) {
  marker = text
}

function writeAll(fd, bytes) {
  let at = 0
  while (at < bytes.length) {
    try {
      at += write(fd, bytes, at)
    } catch (error) {
      if (error.code === 'EAGAIN') Atomics.wait(sleeper, 0, 0, 1)
      else if (error.code !== 'EINTR') throw error
    }
  }
}

// Writes one event. An interrupt may tear a line in two; the next line then begins anew.
export function emit(event) {
  const line = stringify(event) + '\n'
  const bytes = Buffer.from(torn ? '\n' + line : line)
  torn = true
  writeAll(EVENTS, bytes)
  torn = false
}

// Writes the end of a run's output to the descriptors that child processes share.
export function mark(number) {
  const bytes = Buffer.from(`\0${marker}:${number}\0`)
  for (const fd of [1, 2]) {
    try {
      writeAll(fd, bytes)
    } catch {
      // The user's code closed the descriptor; the reader does not wait long.
    }
  }
}

// Number of the run that executes.
export function runNumber() {
  return scope.getStore()?.number ?? newest
}

// Writes text in pieces that end at borders of characters.
export function emitText(stream, text, run = runNumber()) {
  for (let at = 0; at < text.length; ) {
    let end = Math.min(at + PIECE, text.length)
    const last = text.charCodeAt(end - 1)
    if (end < text.length && last >= 0xd800 && last <= 0xdbff) end -= 1
    emit({ text: stream, data: text.slice(at, end), run })
    at = end
  }
}

// A stream of the process that writes events. An interrupt cannot leave it half done, since
// `write` passes by the queue of `Writable`.
class Output extends Writable {
  #name
  #decoder = new StringDecoder('utf8')

  constructor(name, fd) {
    super({ decodeStrings: false })
    this.#name = name
    this.fd = fd
    this._type = 'pipe'
  }

  write(chunk, encoding, done) {
    const callback = typeof encoding === 'function' ? encoding : done
    emitText(this.#name, this.#decode(chunk, encoding))
    if (typeof callback === 'function') process.nextTick(callback)
    return true
  }

  _write(chunk, encoding, done) {
    emitText(this.#name, this.#decode(chunk, encoding))
    done()
  }

  _destroy(error, done) {
    done(error)
  }

  #decode(chunk, encoding) {
    if (typeof chunk !== 'string') return this.#decoder.write(chunk)
    const plain = typeof encoding !== 'string' || /^utf-?8$/i.test(encoding)
    return plain ? chunk : this.#decoder.write(Buffer.from(chunk, encoding))
  }
}

// Replaces the process's streams and the console. Node's own console also tells the inspector,
// which keeps what was logged.
export function installStreams() {
  for (const [name, fd] of [['stdout', 1], ['stderr', 2]]) {
    const stream = new Output(name, fd)
    const get = () => stream
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get })
  }
  const value = new Console({ stdout: process.stdout, stderr: process.stderr })
  value.Console = Console
  Object.defineProperty(globalThis, 'console', { value, writable: true, configurable: true })
}
