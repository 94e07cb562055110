// `Math.random` by a generator that can be seeded anew: xoshiro128** (Blackman and Vigna, 2018).
// V8's own generator cannot, so copies of one machine would draw the same numbers.

import { randomFillSync } from 'node:crypto'

const state = new Uint32Array(4)

function rotate(value, bits) {
  return (value << bits) | (value >>> (32 - bits))
}

function next() {
  const result = Math.imul(rotate(Math.imul(state[1], 5), 7), 9) >>> 0
  const shifted = state[1] << 9
  state[2] ^= state[0]
  state[3] ^= state[1]
  state[1] ^= state[2]
  state[0] ^= state[3]
  state[2] ^= shifted
  state[3] = rotate(state[3], 11)
  return result
}

// Seeds the generator with 32 bytes. A state of zeros, which would never change, is avoided.
export function seed(bytes) {
  const words = new Uint32Array(Uint8Array.from(bytes).buffer)
  for (let at = 0; at < 4; at += 1) state[at] = words[at] ^ rotate(words[at + 4], 16)
  if (state.every((word) => word === 0)) state[0] = 1
  // The first numbers of a seed with few bits set would be small.
  for (let round = 0; round < 16; round += 1) next()
}

// A number from 0 to 1, without 1, with 53 bits of randomness.
function random() {
  return ((next() >>> 5) * 67108864 + (next() >>> 6)) / 9007199254740992
}

export function installRandom() {
  seed(randomFillSync(new Uint8Array(32)))
  Object.defineProperty(Math, 'random', {
    value: random,
    writable: true,
    configurable: true,
    enumerable: false,
  })
}
