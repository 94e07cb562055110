// The host's second thread: reads commands from descriptor 4, so that an interrupt arrives also
// while the main thread loops. All other commands are handed on.

import net from 'node:net'
import inspector from 'node:inspector'
import { parentPort, workerData } from 'node:worker_threads'

const COMMANDS = 4
// Bytes of the longest command.
const LONGEST = 64 * 1024 * 1024
// Milliseconds in which an idle main thread takes an interrupt by itself.
const PATIENCE = 100
// Attempts of one interrupt.
const ROUNDS = 50

// Number of the newest message that the main thread has seen.
const seen = new Int32Array(workerData.seen)
let sent = 0

function post(message) {
  sent += 1
  parentPort.postMessage({ ...message, sequence: sent })
  return sent
}

function reached(sequence, milliseconds) {
  const end = Date.now() + milliseconds
  for (let now = Atomics.load(seen, 0); now < sequence; now = Atomics.load(seen, 0)) {
    const left = end - Date.now()
    if (left <= 0) return false
    Atomics.wait(seen, 0, now, left)
  }
  return true
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))

// Interrupts a run: by a message if the main thread listens, else by ending the code that runs.
async function interrupt(run) {
  if (reached(post({ interrupt: run }), PATIENCE)) return
  // A session that is connected for longer would hold up the end of the process.
  const session = new inspector.Session()
  session.connectToMainThread()
  try {
    await terminate(session, run)
  } finally {
    session.disconnect()
  }
}

// Ends the code that runs. The message is repeated, since the end may hit the code that reads it.
async function terminate(session, run) {
  for (let round = 0; round < ROUNDS; round += 1) {
    session.post('Runtime.terminateExecution')
    await sleep(20)
    if (reached(post({ interrupt: run }), PATIENCE)) return
  }
}

// Commands wait for one another, so that a run cannot get ahead of an interrupt.
let turn = Promise.resolve()
let interrupting = false

function handle(line) {
  let command
  try {
    command = JSON.parse(line)
  } catch {
    return
  }
  if (command.interrupt === undefined) {
    turn = turn.then(() => post({ command }))
  } else if (!interrupting) {
    interrupting = true
    turn = turn.then(() => interrupt(command.interrupt)).finally(() => (interrupting = false))
  }
}

let parts = []
let length = 0

function feed(chunk) {
  let start = 0
  for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, start)) {
    parts.push(chunk.subarray(start, end))
    handle(Buffer.concat(parts).toString('utf8'))
    parts = []
    length = 0
    start = end + 1
  }
  parts.push(chunk.subarray(start))
  length += chunk.length - start
  if (length > LONGEST) process.exit(1)
}

const commands = new net.Socket({ fd: COMMANDS, readable: true, writable: false })
commands.on('data', feed)
commands.on('error', () => {})
