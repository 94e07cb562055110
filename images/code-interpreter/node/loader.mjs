// `require`, `import()` and `import.meta` of cells. All of them resolve from the working directory.

import module from 'node:module'
import path from 'node:path'
import vm from 'node:vm'
import { pathToFileURL } from 'node:url'
import { IMPORT, META } from './rewrite.mjs'
import { quietly } from './quietly.mjs'

const cell = () => path.join(process.cwd(), 'cell.js')
const importers = new Map()
const requires = new Map()

// Keeps one value a folder, and few folders.
function cached(map, key, make) {
  if (!map.has(key)) {
    if (map.size > 64) map.clear()
    map.set(key, make(key))
  }
  return map.get(key)
}

function makeImporter(filename) {
  const loader = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER
  if (loader === undefined) return (name, options) => importResolved(filename, name, options)
  const source = '(specifier, options) => import(specifier, options)'
  const options = { filename, importModuleDynamically: loader }
  return new vm.Script(source, options).runInThisContext()
}

// Imports by the rules of `require`, for a Node without the loader's constant.
function importResolved(filename, specifier, options) {
  if (/^(node|data|file|https?):/.test(specifier)) return import(specifier, options)
  const found = cached(requires, filename, module.createRequire).resolve(specifier)
  return import(path.isAbsolute(found) ? pathToFileURL(found).href : found, options)
}

function importFrom(specifier, options) {
  const importer = cached(importers, cell(), makeImporter)
  return quietly(() => importer(specifier, options))
}

function require(name) {
  return cached(requires, cell(), module.createRequire)(name)
}

function installRequire() {
  const current = () => cached(requires, cell(), module.createRequire)
  require.resolve = (...args) => current().resolve(...args)
  require.cache = current().cache
  require.main = undefined
}

const meta = {
  get url() {
    return pathToFileURL(cell()).href
  },
  get filename() {
    return cell()
  },
  get dirname() {
    return process.cwd()
  },
  resolve: (specifier) => {
    const found = require.resolve(specifier)
    return path.isAbsolute(found) ? pathToFileURL(found).href : found
  },
}

// Defines what cells call.
export function installLoader() {
  installRequire()
  const hidden = { [IMPORT]: importFrom, [META]: meta, require, module: { exports: {} } }
  hidden.exports = hidden.module.exports
  for (const [name, value] of Object.entries(hidden)) {
    define(name, value)
  }
  const names = module.builtinModules.filter((one) => /^[a-z]\w*$/.test(one))
  for (const name of names) installBuiltin(name)
}

// Defines a global that lists of globals leave out.
function define(name, value) {
  const hidden = { value, writable: true, configurable: true, enumerable: false }
  Object.defineProperty(globalThis, name, hidden)
}

// Makes a module of Node a global that loads on first use, as in Node's own prompt.
function installBuiltin(name) {
  if (name in globalThis) return
  Object.defineProperty(globalThis, name, {
    configurable: true,
    enumerable: false,
    get: () => {
      const value = process.getBuiltinModule?.(name) ?? require(name)
      define(name, value)
      return value
    },
    set: (value) => define(name, value),
  })
}
