// Values and errors in the form that clients get: bundles by MIME type, and name, value, traceback.

import util from 'node:util'
import { emit, emitText, runNumber } from './output.mjs'

const inspect = util.inspect
// Longest text and JSON of one value, in UTF-16 units.
const LONGEST = 16 * 1024 * 1024
// Most levels of a JSON value.
const DEEPEST = 64
const JUPYTER = Symbol.for('Jupyter.display')
const MIME = /^[a-z0-9]+\/[a-z0-9][a-z0-9.+_-]*$/i

// Shows a value as text, as Node's own prompt does, without colours.
export function text(value) {
  return shorten(inspect(value, { colors: false, depth: 4, maxArrayLength: 1000 }))
}

function shorten(string) {
  if (string.length <= LONGEST) return string
  return `${string.slice(0, LONGEST)}… (${string.length - LONGEST} more characters)`
}

// Makes the bundle of a value: its own choice of formats, which may take time, else text, and JSON
// for plain data.
export function bundle(value) {
  const own = value === null || value === undefined ? undefined : value[JUPYTER]
  if (typeof own === 'function') return Promise.resolve(own.call(value)).then(encode)
  const data = { 'text/plain': text(value) }
  const json = isPlain(value) ? toJson(value) : undefined
  if (json !== undefined) data['application/json'] = json
  return data
}

function isPlain(value) {
  if (Array.isArray(value)) return true
  if (value === null || typeof value !== 'object' || util.types.isProxy(value)) return false
  const prototype = Object.getPrototypeOf(value)
  return prototype === null || prototype === Object.prototype
}

// Copies a value by JSON. A value that JSON cannot hold, such as a ring, has none.
function toJson(value) {
  try {
    const plain = (_, item) => (typeof item === 'bigint' ? String(item) : item)
    const json = JSON.stringify(value, plain)
    if (json === undefined || json.length > LONGEST) return undefined
    const copy = JSON.parse(json)
    return isShallow(copy, DEEPEST) ? copy : undefined
  } catch {
    return undefined
  }
}

function isShallow(value, levels) {
  if (value === null || typeof value !== 'object') return true
  return levels > 0 && Object.values(value).every((item) => isShallow(item, levels - 1))
}

function isBundle(value) {
  const keys = isPlain(value) && !Array.isArray(value) ? Object.keys(value) : []
  return keys.length > 0 && keys.every((key) => MIME.test(key))
}

// Makes the values of a bundle fit for JSON; bytes become base64.
function encode(formats) {
  const data = {}
  for (const [mime, value] of Object.entries(formats ?? {})) {
    const content = encoded(mime, value)
    if (content !== undefined) data[mime] = content
  }
  return data
}

function encoded(mime, value) {
  if (value === undefined) return undefined
  if (value instanceof ArrayBuffer) return encoded(mime, new Uint8Array(value))
  if (ArrayBuffer.isView(value)) {
    const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength)
    return bounded(mime, bytes.toString('base64'))
  }
  if (typeof value !== 'string') return toJson(value)
  return mime === 'text/plain' ? shorten(value) : bounded(mime, value)
}

function bounded(mime, value) {
  if (value.length <= 2 * LONGEST) return value
  emitText('stderr', `display: the ${mime} value is left out; it has ${value.length} characters\n`)
  return undefined
}

// Shows a value, or a bundle whose keys are MIME types, beside the value of the last expression.
export function display(value) {
  const run = runNumber()
  const show = (data) => emit({ data, main: false, run })
  const data = isBundle(value) ? encode(value) : bundle(value)
  return util.types.isPromise(data) ? data.then(show) : show(data)
}

const SHORT = {
  html: 'text/html',
  markdown: 'text/markdown',
  svg: 'image/svg+xml',
  png: 'image/png',
  jpeg: 'image/jpeg',
  latex: 'text/latex',
  json: 'application/json',
  javascript: 'application/javascript',
}
for (const [name, mime] of Object.entries(SHORT)) {
  display[name] = (value) => display({ [mime]: value })
}

// Makes a failure of whatever was thrown.
export function failure(thrown) {
  try {
    return util.types.isNativeError(thrown) || thrown instanceof Error
      ? ofError(thrown)
      : ofValue(thrown)
  } catch {
    return { name: 'Error', value: 'the thrown value cannot be shown', traceback: '' }
  }
}

function ofError(error) {
  const name = nameOf(error)
  const value = shorten(String(error.message))
  const place = error.position ? `${excerpt(error.position)}\n` : ''
  const bare = place || !/\n {4}at /.test(error.stack)
  const traceback = bare ? `${place}${name}: ${value}` : inspect(error, { colors: false })
  return { name, value, traceback: shorten(traceback) }
}

// Gets the name of an error; a class that sets none has its own.
function nameOf(error) {
  const name = String(error.name || 'Error')
  const kind = error.constructor?.name
  return name === 'Error' && typeof kind === 'string' && kind ? kind : name
}

function ofValue(thrown) {
  const value = text(thrown)
  return { name: 'Error', value, traceback: `Uncaught ${value}` }
}

// Shows a line of code with a mark below the column. Lines and columns count from 0.
export function excerpt({ line, column, code }) {
  const source = (code.split('\n')[line] ?? '').slice(0, 500)
  return `line ${line + 1}\n${source}\n${' '.repeat(Math.min(column, source.length))}^`
}
