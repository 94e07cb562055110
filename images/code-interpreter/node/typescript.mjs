// TypeScript by Node's own type stripper. `strip` keeps each position; `transform` also knows
// enums, namespaces and parameter properties.

import module from 'node:module'
import { quietly } from './quietly.mjs'

const UNSUPPORTED = 'ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX'

const MAP = /\n\/\/# sourceMappingURL=data:application\/json;base64,([A-Za-z0-9+/=]+)\s*$/

// Turns TypeScript into JavaScript. The result is `{ code, map }`; without a map, each position is
// as it was.
export function stripTypes(code) {
  if (typeof module.stripTypeScriptTypes !== 'function') {
    throw new Error(`TypeScript needs Node.js 22.13 or later; this is ${process.version}`)
  }
  try {
    return { code: quietly(() => module.stripTypeScriptTypes(code, { mode: 'strip' })) }
  } catch (error) {
    if (error?.code !== UNSUPPORTED) throw located(error, code)
  }
  return transform(code)
}

function transform(code) {
  try {
    const options = { mode: 'transform', sourceMap: true }
    return split(quietly(() => module.stripTypeScriptTypes(code, options)))
  } catch (error) {
    throw located(error, code)
  }
}

// Takes the map off the end of the code.
function split(code) {
  const found = MAP.exec(code)
  if (!found) return { code }
  const payload = JSON.parse(Buffer.from(found[1], 'base64').toString('utf8'))
  return { code: code.slice(0, found.index), map: new module.SourceMap(payload) }
}

// Makes a syntax error of the stripper look like one of V8. Its stack begins with the line, the
// source and a mark below the column.
function located(error, code) {
  const failure = new SyntaxError(String(error?.message ?? error).trim())
  const found = /^[^\n]*:(\d+)\n[^\n]*\n( *)\^/.exec(String(error?.stack))
  if (found) failure.position = { line: Number(found[1]) - 1, column: found[2].length, code }
  return failure
}
