// Tests of E2B's official JavaScript SDK, unmodified, against a platform with real guests. The SDK
// finds the platform by its own variables.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { randomUUID } from 'node:crypto'
import * as e2b from 'e2b'
import { Sandbox } from 'e2b'

let box
const mark = randomUUID()
before(async () => {
  box = await Sandbox.create({ timeoutMs: 300_000, metadata: { mark }, envs: { A: 'b' } })
})
after(() => box.kill())

async function until(condition) {
  for (let i = 0; i < 300; i++) {
    if (await condition()) return
    await new Promise((done) => setTimeout(done, 100))
  }
  assert.fail('it did not come to be')
}

test('commands say what they wrote and how they ended', async () => {
  const result = await box.commands.run('id -un; echo $A; echo e >&2')
  assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['user\nb\n', 'e\n', 0])
  await assert.rejects(box.commands.run('exit 3'), (e) => e instanceof e2b.CommandExitError && e.exitCode === 3)
  await assert.rejects(box.commands.run('sleep 9', { timeoutMs: 1000 }), e2b.TimeoutError)
  const cat = await box.commands.run('cat', { background: true, stdin: true })
  await box.commands.sendStdin(cat.pid, 'x')
  await box.commands.closeStdin(cat.pid)
  assert.equal((await cat.wait()).stdout, 'x')
  const sleep = await box.commands.run('sleep 100', { background: true })
  assert((await box.commands.list()).some((one) => one.pid === sleep.pid))
  assert(await box.commands.kill(sleep.pid))
  const many = await Promise.all([...Array(20).keys()].map((i) => box.commands.run(`echo ${i}`)))
  assert.deepEqual(many.map((one) => one.stdout), [...Array(20).keys()].map((i) => `${i}\n`))
})

test('terminals show what is typed', async () => {
  let shown = ''
  const shell = await box.pty.create({ cols: 80, rows: 24, onData: (data) => (shown += Buffer.from(data)) })
  await box.pty.resize(shell.pid, { cols: 132, rows: 50 })
  await box.pty.sendInput(shell.pid, Buffer.from('stty size; exit\n'))
  await shell.wait()
  assert.match(shown, /50 132/)
})

test('files are written, read, listed, watched', async () => {
  const at = (name) => `/home/user/${mark}/${name}`
  await box.files.write(at('a'), 'hi')
  assert.equal(await box.files.read(at('a')), 'hi')
  await box.files.write(at('empty'), '')
  assert.equal(await box.files.read(at('empty')), '')
  assert.equal((await box.files.getInfo(at('a'))).size, 2)
  assert(await box.files.makeDir(at('d')))
  const seen = []
  const watch = await box.files.watchDir(at('d'), (event) => seen.push(event.name), { recursive: true })
  await box.files.write(at('d/f'), 'x')
  await until(() => seen.includes('f'))
  await watch.stop()
  assert.deepEqual((await box.files.list(`/home/user/${mark}`)).map((one) => one.name), ['a', 'd', 'empty'])
  await box.files.rename(at('a'), at('b'))
  await box.files.remove(at('b'))
  assert(!(await box.files.exists(at('b'))))
  await assert.rejects(box.files.read(at('b')), e2b.NotFoundError)
  const bytes = new Uint8Array(2_000_000).fill(120)
  await box.files.write(at('big'), bytes.buffer)
  assert.equal((await box.files.read(at('big'), { format: 'bytes' })).length, bytes.length)
})

test('git works', async () => {
  await box.git.init(`/home/user/${mark}/repo`)
  assert((await box.git.status(`/home/user/${mark}/repo`)).currentBranch)
})

test('sandboxes are listed, timed, kept, forked, measured and ended', async () => {
  const one = await Sandbox.create({ timeoutMs: 100_000, metadata: { mark: mark + '1' } })
  const listed = Sandbox.list({ query: { metadata: { mark: mark + '1' } } })
  assert.deepEqual((await listed.nextItems()).map((each) => each.sandboxId), [one.sandboxId])
  assert(!listed.hasNext)
  await one.setTimeout(200_000)
  assert.equal((await one.getInfo()).state, 'running')
  assert((await one.getMetrics())[0].memTotal > 0)
  await one.files.write('kept', 'yes')
  assert(await one.pause())
  assert(!(await one.pause()))
  assert.equal((await one.getInfo()).state, 'paused')
  const again = await Sandbox.connect(one.sandboxId)
  assert.equal(await again.files.read('kept'), 'yes')
  const taken = await again.createSnapshot()
  const other = await Sandbox.create(taken.snapshotId, { timeoutMs: 60_000 })
  assert.equal(await other.files.read('kept'), 'yes')
  await other.kill()
  assert(await Sandbox.deleteSnapshot(taken.snapshotId))
  const [fork] = await again.fork()
  assert.equal(await fork.files.read('kept'), 'yes')
  await fork.kill()
  await again.updateNetwork({ denyOut: ['0.0.0.0/0'] })
  assert.deepEqual((await again.getInfo()).network.denyOut, ['0.0.0.0/0'])
  const sleeping = await again.commands.run('sleep 100', { background: true })
  setTimeout(() => again.kill(), 500)
  await assert.rejects(sleeping.wait(), /killed or reached its end of life/)
  await until(async () => !(await again.isRunning()))
  await assert.rejects(Sandbox.connect(one.sandboxId), e2b.NotFoundError)
})

test('one whose time is over is paused, and wakes', async () => {
  const lifecycle = { onTimeout: 'pause', autoResume: true }
  const one = await Sandbox.create({ timeoutMs: 2000, lifecycle })
  await one.files.write('kept', 'yes')
  await until(async () => (await one.getInfo()).state === 'paused')
  assert.equal(await one.files.read('kept'), 'yes')
  await one.kill()
})
