// What amqplib (node) users do, against the AMQP port in argv[2]. Exits non-zero at the first broken promise.
'use strict';
const assert = require('assert');
const amqp = require('amqplib');
const url = `amqp://guest:guest@127.0.0.1:${process.argv[2]}?heartbeat=10`;

const take = (count, messages) =>
  new Promise((resolve) => {
    const check = () => (messages.length >= count ? resolve(messages.slice(0, count)) : setImmediate(check));
    check();
  });

const refused = async (connection, code, operation) => {
  const channel = await connection.createChannel();
  const closed = new Promise((resolve) => channel.on('error', resolve));
  await operation(channel).catch(() => {});
  assert.strictEqual((await closed).code, code);
};

async function main() {
  const connection = await amqp.connect(url);
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue('node', { durable: true });
  await channel.purgeQueue('node');
  await channel.bindQueue('node', 'amq.topic', 'node.*.value');
  for (let i = 0; i < 6; i++) {
    const options = { persistent: true, contentType: 'text/plain', headers: { n: i, deep: { list: [1, 'x'] } } };
    channel.publish('amq.topic', `node.${i}.value`, Buffer.from(`${i}`), options);
  }
  await channel.waitForConfirms();
  const returned = new Promise((resolve) => channel.once('return', resolve));
  channel.publish('', 'nowhere', Buffer.from('x'), { mandatory: true });
  assert.strictEqual((await returned).fields.replyCode, 312);

  await channel.prefetch(3);
  const first = [];
  await channel.consume('node', (message) => first.push(message));
  await take(3, first);
  assert.deepStrictEqual(first.map((m) => m.content.toString()), ['0', '1', '2']);
  assert.deepStrictEqual(first[1].properties.headers, { n: 1, deep: { list: [1, 'x'] } });
  channel.ack(first[0]);
  await take(4, first);
  // Killed with messages unacknowledged.
  connection.on('error', () => {});
  connection.connection.stream.destroy();

  const other = await amqp.connect(url);
  const second = await other.createChannel();
  // The broker may see the end of one connection after the beginning of another.
  while ((await second.checkQueue('node')).messageCount < 5);
  const again = [];
  await second.consume('node', (message) => { if (message) { again.push(message); second.ack(message); } });
  await take(5, again);
  assert.deepStrictEqual(again.map((m) => m.content.toString()), ['1', '2', '3', '4', '5']);
  assert.ok(again.slice(0, 3).every((m) => m.fields.redelivered));

  await refused(other, 404, (c) => c.checkQueue('none'));
  await refused(other, 403, (c) => c.assertExchange('amq.none', 'direct'));
  await refused(other, 406, (c) => c.assertQueue('node', { durable: false }));
  await refused(other, 406, async (c) => c.ack({ fields: { deliveryTag: 99 } }));
  // The server tells a consumer that its queue is gone.
  const gone = new Promise((resolve) => second.consume('node', (message) => message === null && resolve()));
  await (await other.createChannel()).deleteQueue('node');
  await gone;
  await other.close();
  console.log('ok');
}

main().catch((error) => { console.error(error); process.exit(1); });
