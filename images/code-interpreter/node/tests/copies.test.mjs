// Tests of `crypto.mjs` over a generator that gives its least values again and again, as the
// generators of copies of one machine give equal ones. Run them by `node --test`.

import assert from 'node:assert/strict'
import crypto from 'node:crypto'
import { closeSync, readdirSync, readlinkSync } from 'node:fs'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { installCrypto } from '../crypto.mjs'

const web = globalThis.crypto
const UUID = '00000000-0000-4000-8000-000000000000'
const zeros = (target) => Buffer.from(target.buffer ?? target).fill(0)

Object.assign(crypto, {
  randomBytes: (size, done) => (done ? done(null, Buffer.alloc(size)) : Buffer.alloc(size)),
  randomFill: (target, done) => (zeros(target), done(null, target)),
  randomFillSync: (target) => (zeros(target), target),
  randomInt: (max, done) => (done ? done(undefined, 0) : 0),
  randomUUID: () => UUID,
  randomUUIDv7: () => '01234567-89ab-7000-8000-000000000000',
})
Object.getPrototypeOf(web).getRandomValues = (target) => (zeros(target), target)
Object.getPrototypeOf(web).randomUUID = () => UUID
installCrypto()

const buffer = () => new Uint8Array(32)
const DRAWS = {
  randomBytes: () => crypto.randomBytes(32),
  randomBytes_by_callback: () => promisify(crypto.randomBytes)(32),
  pseudoRandomBytes: () => crypto.pseudoRandomBytes(32),
  randomFill: () => promisify(crypto.randomFill)(buffer()),
  randomFillSync: () => crypto.randomFillSync(buffer()),
  randomInt: () => crypto.randomInt(2 ** 47),
  randomInt_by_callback: () => promisify(crypto.randomInt)(2 ** 47),
  randomUUID: () => crypto.randomUUID(),
  randomUUIDv7: () => crypto.randomUUIDv7(),
  webcrypto_getRandomValues: () => web.getRandomValues(buffer()),
  crypto_getRandomValues: () => crypto.getRandomValues(buffer()),
  webcrypto_randomUUID: () => web.randomUUID(),
}

for (const [name, draw] of Object.entries(DRAWS)) {
  test(`${name}_of_equal_generators_differs`, async () => {
    const values = new Set()
    for (let round = 0; round < 8; round += 1) values.add(String(await draw()))
    assert.equal(values.size, 8)
  })
}

test('uuid_v7_of_equal_generators_keeps_its_time', () => {
  assert.equal(crypto.randomUUIDv7().slice(0, 15), '01234567-89ab-7')
})

test('large_value_of_an_equal_generator_is_mixed_to_its_end', () => {
  const bytes = crypto.randomBytes(300_001)
  for (let at = 0; at < bytes.length - 8; at += 8) {
    assert.notDeepEqual(bytes.subarray(at, at + 9), Buffer.alloc(9), `at ${at}`)
  }
})

test('draw_from_a_closed_kernel_source_fails', async () => {
  const path = (name) => {
    try {
      return readlinkSync(`/proc/self/fd/${name}`)
    } catch {
      return ''
    }
  }
  const found = readdirSync('/proc/self/fd').filter((name) => path(name) === '/dev/urandom')
  for (const name of found) closeSync(Number(name))
  assert.throws(() => crypto.randomBytes(4), { code: 'EBADF' })
  await assert.rejects(promisify(crypto.randomBytes)(4), { code: 'EBADF' })
})
