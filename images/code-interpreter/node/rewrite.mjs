// Rewrites what V8 refuses in evaluated code: imports become `await import(…)` by a function that
// resolves from the working directory. Line numbers stay the user's.

import { parse } from 'acorn'

const OPTIONS = {
  ecmaVersion: 'latest',
  sourceType: 'script',
  allowAwaitOutsideFunction: true,
  allowImportExportEverywhere: true,
  allowHashBang: true,
}

const MODULE_WORDS = /\b(import|export)\b/

// Name of the global function that stands for `import()`.
export const IMPORT = '__wrenn_import'
// Name of the global that stands for `import.meta`.
export const META = '__wrenn_meta'

// Rewrites a cell. Code without imports, and code that acorn cannot read, is V8's own business.
export function rewrite(code) {
  if (!MODULE_WORDS.test(code)) return code
  let tree
  try {
    tree = parse(code, OPTIONS)
  } catch (error) {
    throw syntaxError(error, code)
  }
  const edits = []
  for (const node of tree.body) editStatement(node, code, edits)
  walk(tree, (node) => editExpression(node, edits))
  return applied(code, edits)
}

function syntaxError(error, code) {
  const failure = new SyntaxError(String(error.message).replace(/ \(\d+:\d+\)$/, ''))
  failure.position = error.loc && { line: error.loc.line - 1, column: error.loc.column, code }
  return failure
}

function refusal(message, node, code) {
  const before = code.slice(0, node.start)
  const failure = new SyntaxError(message)
  const line = before.split('\n').length - 1
  failure.position = { line, column: node.start - (before.lastIndexOf('\n') + 1), code }
  return failure
}

function editStatement(node, code, edits) {
  if (node.type === 'ImportDeclaration') {
    edits.push({ start: node.start, end: node.end, text: importText(node, code) })
  } else if (node.type === 'ExportNamedDeclaration' && node.declaration) {
    edits.push({ start: node.start, end: node.declaration.start, text: '' })
  } else if (node.type.startsWith('Export')) {
    throw refusal('a cell cannot re-export or export values; use a plain declaration', node, code)
  }
}

// Writes the statement that stands for an import, with as many line ends.
function importText(node, code) {
  const call = `await ${IMPORT}(${node.source.raw}${attributes(node, code)})`
  const lines = '\n'.repeat(code.slice(node.start, node.end).split('\n').length - 1)
  return `${bindings(node, code, call)};${lines}`
}

function attributes(node, code) {
  if (!node.attributes?.length) return ''
  const pairs = node.attributes.map((one) => code.slice(one.start, one.end).replace(/\n/g, ' '))
  return `, { with: { ${pairs.join(', ')} } }`
}

function bindings(node, code, call) {
  const star = node.specifiers.find((one) => one.type === 'ImportNamespaceSpecifier')
  const names = node.specifiers.filter((one) => one !== star).map((one) => pattern(one, code))
  if (star && names.length) {
    return `const ${star.local.name} = ${call}, { ${names.join(', ')} } = ${star.local.name}`
  }
  if (star) return `const ${star.local.name} = ${call}`
  return names.length ? `const { ${names.join(', ')} } = ${call}` : `void ${call}`
}

function pattern(specifier, code) {
  const local = specifier.local.name
  if (specifier.type === 'ImportDefaultSpecifier') return `default: ${local}`
  return `${code.slice(specifier.imported.start, specifier.imported.end)}: ${local}`
}

function editExpression(node, edits) {
  if (node.type === 'ImportExpression') {
    edits.push({ start: node.start, end: node.start + 'import'.length, text: IMPORT })
  } else if (node.type === 'MetaProperty' && node.meta.name === 'import') {
    edits.push({ start: node.start, end: node.end, text: META })
  }
}

function walk(root, visit) {
  const pending = [root]
  while (pending.length) {
    const node = pending.pop()
    if (typeof node.type === 'string') visit(node)
    for (const value of Object.values(node)) {
      for (const child of Array.isArray(value) ? value : [value]) {
        if (child && typeof child.type === 'string') pending.push(child)
      }
    }
  }
}

function applied(code, edits) {
  edits.sort((a, b) => b.start - a.start)
  const replace = (text, edit) => text.slice(0, edit.start) + edit.text + text.slice(edit.end)
  return edits.reduce(replace, code)
}
