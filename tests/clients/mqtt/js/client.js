// MQTT.js, 3.1.1 and 5, TCP and WebSocket.
const mqtt = require('mqtt')

const [step, version, url, name] = process.argv.slice(2)
const options = { clientId: name, clean: false, protocolVersion: version === '5' ? 5 : 4, reconnectPeriod: 0 }
if (version === '5') options.properties = { sessionExpiryInterval: 3600 }
if (step === 'first') options.will = { topic: `will/${name}`, payload: 'gone', qos: 1 }
const got = []
let present
let moved = () => {}

function say() {
  process.stdout.write(JSON.stringify({ present, got }) + '\n', () => process.exit(0))
}

function taken(count, wanted) {
  return new Promise((resolve) => {
    moved = () => {
      if (got.filter((one) => one.startsWith(wanted)).length >= count) resolve()
    }
    moved()
  })
}

async function main() {
  const client = mqtt.connect(url, options)
  // From the first packet on: what waited may come with CONNACK.
  client.on('message', (topic, payload, packet) => {
    if (step === 'second' && topic.startsWith(`in/${name}/q`)) return
    got.push(`${topic} ${payload} ${packet.qos}`)
    moved()
  })
  present = await new Promise((resolve, reject) => {
    client.on('connect', (connack) => resolve(connack.sessionPresent))
    client.on('error', reject)
  })
  if (step === 'first') {
    await client.subscribeAsync(`in/${name}/#`, { qos: 2 })
    await client.publishAsync(`state/${name}`, 'on', { qos: 1, retain: true })
    const sent = []
    for (const qos of [0, 1, 2]) {
      for (let i = 0; i < 10; i++) sent.push(client.publishAsync(`in/${name}/q${qos}`, `${i}`, { qos }))
    }
    await Promise.all(sent)
    await taken(30, `in/${name}/q`)
    return say()
  }
  await taken(40, `in/${name}/later`)
  await client.subscribeAsync(`state/${name}`, { qos: 2 })
  await taken(1, `state/${name}`)
  await client.endAsync()
  say()
}

setTimeout(() => { console.error('too slow'); process.exit(1) }, 40000).unref()
main().catch((error) => { console.error(error); process.exit(1) })
