// Stack traces that end where the user's code ends, rather than in the host.

import path from 'node:path'
import { fileURLToPath } from 'node:url'

const HOST = path.dirname(fileURLToPath(import.meta.url)) + path.sep
const URL_PREFIX = new URL('.', import.meta.url).href
// Files whose functions stand between the user's code and Node's. Traces go on below them.
const BETWEEN = ['crypto.mjs', 'timers.mjs'].map((name) => URL_PREFIX + name)

function isHost(site) {
  const file = String(site.getFileName() ?? '')
  const ours = file.startsWith(URL_PREFIX) || file.startsWith(HOST)
  return (ours && !file.includes('/node_modules/')) || file === 'node:inspector'
}

function headline(error) {
  try {
    const code = error.code
    if (typeof code !== 'string' || !code.startsWith('ERR_')) return String(error)
    return `${error.name} [${code}]: ${error.message}`
  } catch {
    return 'Error'
  }
}

// Source maps of the newest cells, by the cells' names.
const maps = new Map()
const MOST_MAPS = 256

// Remembers how the lines of a cell correspond to the user's.
export function addMap(name, map) {
  if (maps.size >= MOST_MAPS) maps.delete(maps.keys().next().value)
  maps.set(name, map)
}

// Replaces positions in rewritten code by the user's.
function mapped(frame) {
  return frame.replace(/(cell-\d+\.ts):(\d+):(\d+)/g, (place, name, line, column) => {
    const found = maps.get(name)?.findEntry(Number(line) - 1, Number(column) - 1)
    const known = found !== undefined && found.originalLine !== undefined
    return known ? `${name}:${found.originalLine + 1}:${found.originalColumn + 1}` : place
  })
}

function prepare(error, sites) {
  const open = sites.filter((site) => !BETWEEN.includes(site.getFileName()))
  const end = open.findIndex(isHost)
  const shown = end < 0 ? open : open.slice(0, end)
  return [headline(error), ...shown.map((site) => `    at ${mapped(String(site))}`)].join('\n')
}

// Makes all stack traces of the process end before the host's frames.
export function installStacks() {
  Error.prepareStackTrace = prepare
}
