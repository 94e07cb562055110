// Answers to questions about the state: completions, and the user's variables.

import util from 'node:util'

const KEYWORDS = (
  'async await break case catch class const continue debugger default delete do else extends ' +
  'finally for function if import in instanceof let new of return static super switch this throw ' +
  'try typeof var void while with yield'
).split(' ')
const NAME = /^[\p{ID_Start}$_][\p{ID_Continue}$]*$/u
// The names before the last one, and the part of the last one, at the end of code.
const TAIL = /((?:[\p{ID_Start}$_][\p{ID_Continue}$]*\.)*)([\p{ID_Continue}$]*)$/u
const PREVIEW = { depth: 1, maxArrayLength: 10, maxStringLength: 100, breakLength: Infinity }
const PEEK = { throwOnSideEffect: true, timeout: 200, silent: true, objectGroup: 'peek' }
// Characters of a name that is completed, with its owners.
const LONGEST = 1000
// Levels of an object's chain of prototypes that are searched.
const DEEPEST = 20
const MOST = 500
const known = new Set()

// Remembers the globals that the user did not make.
export function rememberGlobals() {
  for (const name of Object.getOwnPropertyNames(globalThis)) known.add(name)
}

function lexicalNames(session) {
  let names = []
  session.post('Runtime.globalLexicalScopeNames', {}, (error, found) => {
    if (!error) names = found.names
  })
  return names
}

// Evaluates an expression that has no side effects and returns its value.
function peek(session, take, expression) {
  let result
  session.post('Runtime.evaluate', { ...PEEK, expression }, (error, answer) => {
    if (!error && !answer.exceptionDetails) result = take(answer.result)
  })
  session.post('Runtime.releaseObjectGroup', { objectGroup: 'peek' })
  return result
}

function propertyNames(value) {
  const names = new Set()
  let at = Object(value)
  for (let depth = 0; at && depth < DEEPEST; depth += 1) {
    for (const name of Object.getOwnPropertyNames(at)) names.add(name)
    at = Object.getPrototypeOf(at)
  }
  return [...names].filter((name) => NAME.test(name))
}

// Completes the name before a position, which counts characters rather than UTF-16 units.
export function complete(session, take, { code, cursor }) {
  const before = [...code].slice(0, cursor).slice(-LONGEST).join('')
  const [, owner, part] = TAIL.exec(before)
  const names = owner
    ? propertyNames(peek(session, take, owner.slice(0, -1)) ?? {})
    : [...lexicalNames(session), ...Object.getOwnPropertyNames(globalThis), ...KEYWORDS]
  const fits = (name) => name.startsWith(part) && !name.startsWith('__wrenn')
  const matches = [...new Set(names)].filter(fits)
  return {
    matches: matches.sort().slice(0, MOST),
    cursor_start: cursor - [...part].length,
    cursor_end: cursor,
  }
}

// Lists the user's variables.
export function variables(session, take) {
  const own = Object.getOwnPropertyNames(globalThis).filter((name) => !known.has(name))
  const names = [...new Set([...lexicalNames(session), ...own])].slice(0, MOST)
  return names.map((name) => describe(name, peek(session, take, name)))
}

function describe(name, value) {
  const preview = util.inspect(value, PREVIEW)
  const described = { name, type: typeName(value), preview: preview.slice(0, 200) }
  const size = sizeOf(value)
  return size === undefined ? described : { ...described, size }
}

function typeName(value) {
  if (value === null) return 'null'
  if (typeof value !== 'object' || util.types.isProxy(value)) return typeof value
  const name = Object.getPrototypeOf(value)?.constructor?.name
  return typeof name === 'string' && name ? name : 'object'
}

function sizeOf(value) {
  if (typeof value === 'string' || Array.isArray(value)) return value.length
  if (ArrayBuffer.isView(value)) return value.byteLength
  return value instanceof Map || value instanceof Set ? value.size : undefined
}
