// Random values of `node:crypto` and Web Crypto that differ between copies of one machine.
//
// OpenSSL's generator cannot be seeded anew from JavaScript, and Node keeps values in store. So
// each value is mixed with bytes that the kernel gives at the call. The kernel's own generator is
// seeded anew in each copy. A value is as unpredictable as the better one of its two sources.

import crypto from 'node:crypto'
import { openSync, readSync } from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'

// Bytes that are drawn and mixed at once.
const PIECE = 64 * 1024
// Numbers that 6 bytes have, as in `randomInt`.
const NUMBERS = 2 ** 48
// Older names of `randomBytes`.
const ALIASES = ['prng', 'pseudoRandomBytes', 'rng']

const read = readSync
const drawn = Buffer.allocUnsafeSlow(PIECE)
let source

// Draws bytes of the kernel, `PIECE` at most. They are valid until the next call.
function draw(length) {
  for (let at = 0; at < length; ) {
    try {
      const got = read(source, drawn, at, length - at)
      if (got === 0) throw new Error('the kernel gives no randomness')
      at += got
    } catch (error) {
      if (error.code !== 'EINTR') throw error
    }
  }
  return drawn.subarray(0, length)
}

// Mixes bytes of the kernel into an array of bytes.
function mix(bytes) {
  for (let start = 0; start < bytes.length; start += PIECE) {
    const end = Math.min(start + PIECE, bytes.length)
    const fresh = draw(end - start)
    for (let at = start; at < end; at += 1) bytes[at] ^= fresh[at - start]
  }
}

// Views a part of an array or a buffer as bytes. Offset and size count elements. A buffer that was
// transferred or made smaller since the call has fewer bytes than that.
function view(target, offset = 0, size = Infinity) {
  const unit = target.BYTES_PER_ELEMENT || 1
  const start = Math.floor(offset * unit)
  const length = Math.min(Math.floor(size * unit), target.byteLength - start)
  if (!(length > 0)) return new Uint8Array(0)
  return new Uint8Array(target.buffer ?? target, (target.byteOffset ?? 0) + start, length)
}

// Mixes bytes of the kernel into a part of an array or a buffer, and returns the whole.
function mixPart(target, offset, size) {
  mix(view(target, offset, size))
  return target
}

// Draws a number from 0 to `range`, without `range`. All have the same probability.
function below(range) {
  const limit = NUMBERS - (NUMBERS % range)
  for (;;) {
    const number = draw(6).readUIntBE(0, 6)
    if (number < limit) return number % range
  }
}

// Mixes the bytes of a UUID from an index on. Its version and variant stay.
function mixUuid(text, first) {
  const bytes = Buffer.from(text.replaceAll('-', ''), 'hex')
  const [version, variant] = [bytes[6] & 0xf0, bytes[8] & 0xc0]
  mix(bytes.subarray(first))
  bytes[6] = version | (bytes[6] & 0x0f)
  bytes[8] = variant | (bytes[8] & 0x3f)
  return bytes.toString('hex').replace(/(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
}

// Makes a callback that changes the value before it calls another.
function later(callback, change) {
  return function (error, value) {
    if (error) return Reflect.apply(callback, this, [error])
    let changed
    try {
      changed = change(value)
    } catch (failure) {
      return Reflect.apply(callback, this, [failure])
    }
    return Reflect.apply(callback, this, [error, changed])
  }
}

// Replacements of functions of `node:crypto`. Wrong arguments are left to Node's own functions,
// whose errors are well known.
const REPLACEMENTS = {
  randomBytes: (original) => (size, callback) => {
    if (typeof callback !== 'function') return mixPart(original(size, callback))
    return original(size, later(callback, mixPart))
  },

  randomFill: (original) => (target, ...rest) => {
    const at = rest.findIndex((one) => typeof one === 'function')
    if (at < 0) return original(target, ...rest)
    const part = rest.slice(0, at)
    return original(target, ...part, later(rest[at], () => mixPart(target, ...part)))
  },

  randomFillSync: (original) => (target, offset, size) =>
    mixPart(original(target, offset, size), offset, size),

  randomInt: (original) => (min, max, callback) => {
    const short = max === undefined || typeof max === 'function'
    const [low, high, done] = short ? [0, min, max] : [min, max, callback]
    const change = (number) => low + ((number - low + below(high - low)) % (high - low))
    if (done === undefined) return change(original(min, max))
    if (typeof done !== 'function') return original(min, max, callback)
    return short ? original(min, later(done, change)) : original(min, max, later(done, change))
  },

  randomUUID: (original) => (options) => mixUuid(original(options), 0),

  // The first 6 bytes are the time.
  randomUUIDv7: (original) => (options) => mixUuid(original(options), 6),
}

// Replacements of methods of Web Crypto, which check their `this`.
const METHODS = {
  getRandomValues: (original) =>
    function (...args) {
      return mixPart(Reflect.apply(original, this, args))
    },

  randomUUID: (original) =>
    function () {
      return mixUuid(Reflect.apply(original, this, []), 0)
    },
}

// Replaces functions of an object. A function that this Node lacks stays away.
function replace(owner, replacements) {
  for (const [name, make] of Object.entries(replacements)) {
    const descriptor = Object.getOwnPropertyDescriptor(owner, name)
    if (typeof descriptor?.value !== 'function') continue
    const value = make(descriptor.value)
    for (const property of ['name', 'length']) {
      Object.defineProperty(value, property, {
        value: descriptor.value[property],
        configurable: true,
      })
    }
    Object.defineProperty(owner, name, { ...descriptor, value })
  }
}

// Replaces the functions for random values, for `require` and `import` alike.
export function installCrypto() {
  source = openSync('/dev/urandom')
  replace(crypto, REPLACEMENTS)
  replace(Object.getPrototypeOf(crypto.webcrypto), METHODS)
  for (const name of ALIASES) {
    const alias = { value: crypto.randomBytes, writable: true, configurable: true }
    if (name in crypto) Object.defineProperty(crypto, name, { ...alias, enumerable: false })
  }
  syncBuiltinESMExports()
}
