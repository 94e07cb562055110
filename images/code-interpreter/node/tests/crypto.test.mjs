// Tests of `crypto.mjs` on Node's own functions: their rules hold, and ESM and CommonJS agree.
// Run them by `node --test`.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { test } from 'node:test'
import { promisify } from 'node:util'
import * as named from 'node:crypto'
import { installCrypto } from '../crypto.mjs'

const before = { ...named }
installCrypto()
const crypto = createRequire(import.meta.url)('node:crypto')
const web = globalThis.crypto

const V4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
const V7 = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
const FUNCTIONS = ['randomBytes', 'randomFill', 'randomFillSync', 'randomInt', 'randomUUID']

test('named_imports_are_replaced', () => {
  for (const name of FUNCTIONS) {
    assert.notEqual(named[name], before[name], name)
    assert.equal(named[name], crypto[name], name)
    assert.equal(named[name].name, name)
    assert.equal(named[name].length, before[name].length, name)
  }
  assert.equal(crypto.pseudoRandomBytes, crypto.randomBytes)
  assert.equal(Object.keys(crypto).includes('prng'), false)
  assert.equal(crypto.webcrypto, web)
})

test('random_bytes_fill_any_size', async () => {
  for (const size of [0, 1, 65535, 65536, 65537, 200_000]) {
    for (const bytes of [crypto.randomBytes(size), await promisify(crypto.randomBytes)(size)]) {
      assert.equal(Buffer.isBuffer(bytes), true)
      assert.equal(bytes.length, size)
      // A stretch of zeros would be one that neither source has filled.
      assert.equal(bytes.includes(Buffer.alloc(16)), false)
    }
  }
})

test('random_fill_of_a_part_leaves_the_rest', async () => {
  const fill = promisify(crypto.randomFill)
  for (const make of [Buffer.alloc, (n) => new Float64Array(n), (n) => new Uint16Array(n)]) {
    for (const call of [crypto.randomFillSync, fill]) {
      const array = make(64)
      assert.equal(await call(array, 16, 32), array)
      const unit = array.BYTES_PER_ELEMENT
      const bytes = Buffer.from(array.buffer, array.byteOffset, array.byteLength)
      assert.deepEqual(bytes.subarray(0, 16 * unit), Buffer.alloc(16 * unit))
      assert.deepEqual(bytes.subarray(48 * unit), Buffer.alloc(16 * unit))
      assert.notDeepEqual(bytes.subarray(16 * unit, 48 * unit), Buffer.alloc(32 * unit))
    }
  }
})

test('random_fill_takes_each_kind_of_buffer', async () => {
  const kinds = [new ArrayBuffer(32), new SharedArrayBuffer(32), new DataView(new ArrayBuffer(32))]
  for (const target of kinds) {
    assert.equal(crypto.randomFillSync(target), target)
    assert.equal(await promisify(crypto.randomFill)(target), target)
    assert.notDeepEqual(Buffer.from(target.buffer ?? target), Buffer.alloc(32))
  }
  const tail = await promisify(crypto.randomFill)(Buffer.alloc(32), 16)
  assert.deepEqual(tail.subarray(0, 16), Buffer.alloc(16))
  assert.notDeepEqual(tail.subarray(16), Buffer.alloc(16))
})

test('random_fill_of_a_transferred_buffer_calls_back', async () => {
  const target = new ArrayBuffer(32)
  const filled = promisify(crypto.randomFill)(target)
  structuredClone(target, { transfer: [target] })
  assert.equal(await filled, target)
})

test('random_int_stays_in_its_range', async () => {
  const seen = new Set()
  for (let round = 0; round < 400; round += 1) {
    seen.add(crypto.randomInt(-2, 2))
    seen.add(await promisify(crypto.randomInt)(-2, 2))
  }
  assert.deepEqual([...seen].sort((a, b) => a - b), [-2, -1, 0, 1])
  assert.equal(crypto.randomInt(1), 0)
  assert.equal(await promisify(crypto.randomInt)(1), 0)
  const top = Number.MAX_SAFE_INTEGER
  assert.equal(crypto.randomInt(top - 1, top), top - 1)
  const big = crypto.randomInt(2 ** 48 - 1)
  assert.equal(Number.isSafeInteger(big) && big >= 0 && big < 2 ** 48 - 1, true)
  assert.equal(crypto.randomInt(5, undefined, assert.fail) < 5, true)
})

test('random_int_is_uniform', () => {
  const counts = new Array(6).fill(0)
  for (let round = 0; round < 60_000; round += 1) counts[crypto.randomInt(6)] += 1
  // The deviation of each count is 91.
  for (const count of counts) assert.equal(Math.abs(count - 10_000) < 700, true, `${counts}`)
})

test('uuids_have_version_and_variant', () => {
  for (let round = 0; round < 300; round += 1) {
    assert.match(crypto.randomUUID(), V4)
    assert.match(crypto.randomUUID({ disableEntropyCache: true }), V4)
    assert.match(web.randomUUID(), V4)
  }
  if (!crypto.randomUUIDv7) return
  const time = Date.now()
  const uuid = crypto.randomUUIDv7()
  assert.match(uuid, V7)
  assert.equal(Math.abs(parseInt(uuid.slice(0, 8) + uuid.slice(9, 13), 16) - time) < 60_000, true)
})

test('web_values_fill_the_view_alone', () => {
  const whole = new Uint8Array(96)
  const part = new Uint32Array(whole.buffer, 32, 8)
  assert.equal(web.getRandomValues(part), part)
  assert.deepEqual(whole.subarray(0, 32), new Uint8Array(32))
  assert.deepEqual(whole.subarray(64), new Uint8Array(32))
  assert.notDeepEqual(whole.subarray(32, 64), new Uint8Array(32))
  const ours = crypto.getRandomValues(new BigInt64Array(4))
  assert.equal(ours.every((word) => word === 0n), false)
})

test('wrong_arguments_fail_as_before', () => {
  const calls = [
    (of) => of.randomBytes(-1),
    (of) => of.randomBytes(4, 'text'),
    (of) => of.randomFill(Buffer.alloc(4)),
    (of) => of.randomFill('text', () => {}),
    (of) => of.randomFill(Buffer.alloc(4), 5, () => {}),
    (of) => of.randomFillSync([]),
    (of) => of.randomFillSync(Buffer.alloc(4), 2, 3),
    (of) => of.randomInt(0),
    (of) => of.randomInt(5n),
    (of) => of.randomInt(2 ** 50),
    (of) => of.randomInt(1, 2, 'text'),
    (of) => of.randomInt(3, 1, () => {}),
    (of) => of.randomUUID('text'),
    (of) => of.getRandomValues(new Float32Array(1)),
    (of) => of.getRandomValues(new Uint8Array(65537)),
    (of) => of.webcrypto.getRandomValues.call({}, new Uint8Array(1)),
    (of) => of.webcrypto.getRandomValues(),
    (of) => of.webcrypto.randomUUID.call({}),
  ]
  for (const call of calls) {
    const [old, now] = [before, crypto].map((of) => {
      try {
        return call(of)
      } catch (error) {
        return { code: error.code, name: error.name, message: error.message }
      }
    })
    assert.deepEqual(now, old, `${call}`)
    assert.equal(typeof now?.message, 'string', `${call}`)
  }
})
