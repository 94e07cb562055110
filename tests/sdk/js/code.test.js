// Tests of E2B's official JavaScript SDK for the code interpreter, unmodified, against our interpreter
// with real kernels. `run` starts the interpreter on this machine. The SDK finds it by its own
// variables.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox } from '@e2b/code-interpreter'

let box
before(async () => {
  box = await Sandbox.create(process.env.CODE_TEMPLATE ?? 'base', { timeoutMs: 600_000 })
})
after(() => box.kill())

test('results have the value, its formats and the count', async () => {
  const result = await box.runCode('x = 41\nx + 1')
  assert.equal(result.text, '42')
  assert.deepEqual((await box.runCode('[1, None]')).results[0].json, [1, null])
  assert.equal((await box.runCode('x')).executionCount, result.executionCount + 2)
})

test('a chart has its picture, and extra holds what is unknown', async () => {
  const plot = "import matplotlib.pyplot as plt\nplt.pie([9, 1], labels=['a', 'b'])\nplt.show()"
  const [shown] = (await box.runCode(plot)).results
  assert.equal(shown.chart.type, 'pie')
  assert.deepEqual(shown.chart.elements.map((slice) => Math.round(slice.angle)), [324, 36])
  assert.deepEqual([Boolean(shown.png), shown.extra], [true, {}])
  const own = "from IPython.display import display\ndisplay({'a/b': 1}, raw=True)"
  assert.deepEqual((await box.runCode(own)).results[0].extra, { 'a/b': 1 })
})

test('characters and long output arrive whole', async () => {
  const odd = 'a\u2028b\u2029c\u0085d\u0000e\u{1f600}f'
  const codes = [...odd].map((c) => c.codePointAt(0)).join(', ')
  const print = `print(''.join(map(chr, [${codes}])) * 1000, end='')`
  assert.equal((await box.runCode(print)).logs.stdout.join(''), odd.repeat(1000))
  const long = await box.runCode("print('x' * 10_000_000)")
  assert.equal(long.logs.stdout.join('').length, 10_000_001)
})

test('a timeout interrupts and keeps the state', async () => {
  await box.runCode('z = 5')
  for (const code of ['import time; time.sleep(300)', 'while True: pass']) {
    await assert.rejects(box.runCode(code, { timeoutMs: 2000 }))
    assert.equal((await box.runCode('z')).text, '5')
  }
})

test('errors, callbacks, contexts and languages', async () => {
  const { error } = await box.runCode('1 / 0')
  assert.deepEqual([error.name, error.value], ['ZeroDivisionError', 'division by zero'])
  const heard = []
  await box.runCode('print(1)', { onStdout: (line) => heard.push(line.line) })
  assert.deepEqual(heard, ['1\n'])
  const context = await box.createCodeContext({ cwd: '/usr' })
  const own = await box.runCode('import os; os.getcwd()', { context })
  assert.equal(own.text, '/usr')
  await box.removeCodeContext(context)
  await assert.rejects(box.runCode('1', { context }), /not found/)
  // The reason phrase is all that this SDK shows of an error.
  await assert.rejects(box.runCode('1', { language: 'cobol' }), /cobol/)
  const typed = await box.runCode('const n: number = 7; n', { language: 'ts' })
  assert.equal(typed.text, '7')
})
