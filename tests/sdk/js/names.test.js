// Tests by host names over TLS of requests without headers: signed URLs, and a port of a sandbox.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Sandbox } from 'e2b'

test('files go up and down by signed URLs, and ports have names', async () => {
  const box = await Sandbox.create({ timeoutMs: 60_000 })
  try {
    await box.files.write('down', 'signed')
    const down = await box.downloadUrl('down', { user: 'user' })
    assert.equal(await (await fetch(down)).text(), 'signed')
    assert.equal((await fetch(down.replace('down', 'other'))).status, 401)
    const form = new FormData()
    form.append('file', new Blob(['sent']), 'up')
    const sent = await fetch(await box.uploadUrl('up', { user: 'user' }), { method: 'POST', body: form })
    assert.equal(sent.status, 200)
    assert.equal(await box.files.read('up'), 'sent')
    const closed = await fetch(`https://${box.getHost(8000)}`)
    assert.match((await closed.json()).message, /port is not open/)
  } finally {
    await box.kill()
  }
})
