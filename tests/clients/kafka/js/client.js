// kafkajs; see ../README.md. Its packages are in the folder that NODE_PATH names.
'use strict'
const { Kafka, CompressionTypes, CompressionCodecs, logLevel } = require('kafkajs')
const snappy = require('kafkajs-snappy')
const Lz4 = require('@2l/kafkajs-lz4')
const zstd = require('@bokuweb/zstd-wasm')

CompressionCodecs[CompressionTypes.Snappy] = snappy
const LZ4 = Lz4.default || Lz4
CompressionCodecs[CompressionTypes.LZ4] = new LZ4().codec
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async encoder => Buffer.from(zstd.compress(encoder.buffer, 3)),
  decompress: async buffer => Buffer.from(zstd.decompress(buffer)),
})

const CLIENT = 'kafkajs'
const CODECS = {
  none: CompressionTypes.None,
  gzip: CompressionTypes.GZIP,
  snappy: CompressionTypes.Snappy,
  lz4: CompressionTypes.LZ4,
  zstd: CompressionTypes.ZSTD,
}
const PATIENCE_MS = 90000
const nameOf = text => text.split('/').slice(0, 4).join('/')

const produce = async (kafka, topic, run, count) => {
  const admin = kafka.admin()
  await admin.connect()
  await admin.createTopics({ topics: [{ topic, numPartitions: 4, replicationFactor: 1 }] })
  await admin.disconnect()
  for (const [codec, compression] of Object.entries(CODECS)) {
    const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 })
    await producer.connect()
    const messages = Array.from({ length: count }, (_, i) => ({
      key: `k${i}`,
      value: `${CLIENT}/${run}/${codec}/${i}/` + 'tributary '.repeat(8),
      headers: { h: ['1', '2'] },
    }))
    await producer.send({ topic, acks: -1, compression, messages })
    await producer.disconnect()
  }
  return { codecs: Object.keys(CODECS) }
}

// A member that hands every value to `seen`; `share.partitions` follows its assignment.
const member = async (kafka, topic, groupId, seen, share) => {
  const consumer = kafka.consumer({ groupId, sessionTimeout: 10000, heartbeatInterval: 500, maxWaitTimeInMs: 200 })
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
    share.partitions = (payload.memberAssignment[topic] || []).length
    share.joined()
  })
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({
    eachMessage: async ({ message }) => {
      const headers = [].concat(message.headers.h).map(String).join()
      if (headers !== '1,2') throw new Error(`headers: ${headers}`)
      seen(nameOf(message.value.toString()))
    },
  })
  return consumer
}

// Checks on every message and every join, not by the clock.
const waiting = () => {
  let wake
  const state = { check: () => false }
  const done = new Promise((resolve, reject) => {
    wake = resolve
    setTimeout(() => reject(new Error(`out of time: ${state.describe()}`)), PATIENCE_MS).unref()
  })
  state.poke = () => state.check() && wake()
  state.done = done
  return state
}

const consume = async (kafka, topic, group, expected) => {
  const values = new Set()
  const first = waiting()
  const all = waiting()
  const shares = [{ partitions: 0 }, { partitions: 0 }]
  first.check = () => shares[0].partitions > 0
  all.check = () => values.size >= expected && shares[1].partitions > 0 && shares[0].partitions < 4
  first.describe = all.describe = () => `${values.size} of ${expected}, ${JSON.stringify(shares)}`
  const seen = value => { values.add(value); all.poke() }
  shares.forEach(share => { share.joined = () => { first.poke(); all.poke() } })
  const one = await member(kafka, topic, group, seen, shares[0])
  await first.done
  const two = await member(kafka, topic, group, seen, shares[1])
  await all.done
  const had = shares.map(share => share.partitions)
  await Promise.all([one.stop(), two.stop()])
  await Promise.all([one.disconnect(), two.disconnect()])
  return { values: [...values], shares: had }
}

const resume = async (kafka, topic, group, expected) => {
  const values = []
  const all = waiting()
  all.check = () => values.length >= expected
  all.describe = () => `${values.length} of ${expected}`
  const consumer = await member(kafka, topic, group, value => { values.push(value); all.poke() }, { joined: () => {} })
  await all.done
  await new Promise(resolve => setTimeout(resolve, 1000))
  await consumer.disconnect()
  return { values }
}

const main = async () => {
  const [step, bootstrap, topic, which, count] = process.argv.slice(2)
  await zstd.init()
  const kafka = new Kafka({ clientId: CLIENT, brokers: bootstrap.split(','), logLevel: logLevel.ERROR })
  const steps = { produce, consume, resume }
  console.log(JSON.stringify(await steps[step](kafka, topic, which, Number(count))))
}

main().then(() => process.exit(0), error => { console.error(error); process.exit(1) })
