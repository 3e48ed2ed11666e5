// The console: reads the public admin API every two seconds and shows it. Rates are differences of two readings.
// Names come from devices and clients: they are only ever set as text, never as HTML.
"use strict";

const PERIOD_MS = 2000;
const HISTORY = 60;
const history = new Map();
let last = null;

const get = async (path) => {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
};

const el = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const cell = (text, kind) => el("td", kind ? { class: kind } : {}, String(text));
const show = (id, text) => { document.getElementById(id).textContent = text; };
const number = new Intl.NumberFormat("en");
const count = (value) => (value === undefined ? "–" : number.format(value));

const rate = (value) => {
  if (value === null) return "–";
  return number.format(value < 10 ? Math.round(value * 10) / 10 : Math.round(value));
};

const ago = (ms) => {
  if (!ms) return "never";
  const seconds = Math.max(0, Math.round((Date.now() - ms) / 1000));
  if (seconds < 90) return `${seconds} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return new Date(ms).toLocaleString();
};

const span = (seconds) => {
  const days = Math.floor(seconds / 86400);
  const hours = Math.floor(seconds / 3600) % 24;
  const minutes = Math.floor(seconds / 60) % 60;
  if (days) return `${days} d ${hours} h`;
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min` : `${seconds} s`;
};

// Records per second of `key` since the reading before; null on the first one. `fresh`: where what is new since then began.
const since = (now, key, value, fresh = null) => {
  const before = last && (last.values.get(key) ?? fresh);
  now.values.set(key, value);
  if (before === undefined || before === null) return null;
  return Math.max(0, (value - before) / ((now.at - last.at) / 1000));
};

const spark = (key, value) => {
  const values = history.get(key) ?? [];
  if (value !== null) values.push(value);
  if (values.length > HISTORY) values.shift();
  history.set(key, values);
  const top = Math.max(1, ...values);
  const points = values.map((v, i) => `${i + HISTORY - values.length},${24 - (v / top) * 22}`).join(" ");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${HISTORY - 1} 25`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points);
  svg.append(line);
  return svg;
};

const streamRow = (now, stream) => {
  const value = since(now, `s/${stream.name}`, stream.written, 0);
  const graph = el("td");
  graph.append(spark(stream.name, value));
  const name = stream.compact ? `${stream.name} (compacted)` : stream.name;
  return { value, row: el("tr", {}, cell(name, "name"), cell(stream.partitions, "n"), cell(rate(value), "n"), graph,
    cell(count(stream.records), "n"), cell(count(stream.written), "n")) };
};

const edgeRow = (now, edge) => {
  const name = el("td", { class: "name" });
  name.append(el("span", { class: edge.connected ? "dot on" : "dot", title: edge.connected ? "connected" : "offline" }), edge.id);
  const alarms = edge.alarms ?? [];
  if (alarms.length) name.append(el("span", { class: "warn" }, ` ${alarms.join(", ")}`));
  const lane = (lane) => lane.backlog ? `${lane.lane} (${count(lane.backlog)} wait${lane.drained_in_s === null ? "" : `, ${span(lane.drained_in_s)}`})` : lane.lane;
  const lanes = edge.lanes.length ? edge.lanes.map(lane).join(", ") : "offline";
  const more = [edge.inventory?.version && `version ${edge.inventory.version}`, ...edge.lanes.map((lane) => `${lane.lane}: ${lane.address}`),
    ...(Array.isArray(edge.inventory?.notes) ? edge.inventory.notes : [])];
  name.title = more.filter(Boolean).join("\n");
  const value = edge.total === undefined ? null : since(now, `e/${edge.id}`, edge.total);
  return el("tr", {}, name, cell(lanes, edge.lanes.length ? "" : "soft"), cell(rate(value), "n"), cell(count(edge.total), "n"),
    cell(count(edge.duplicates), "n"), cell(count(edge.declared_lost), edge.declared_lost ? "n warn" : "n"), cell(ago(edge.last_ms)));
};

const routeRow = (route) => el("tr", {}, cell(route.filter, "name"), cell(route.stream), cell(route.key ?? "topic"), cell(route.partition));

// A shard is its number; with an arrow if it is handed over, and to whom.
const nodeRow = (cluster, node) => {
  const name = (id) => cluster.nodes.find((other) => other.id === id)?.name ?? id;
  const shard = ({ shard, next }) => (next === null ? String(shard) : `${shard} → ${name(next)}`);
  const shards = cluster.shards.filter((shard) => shard.owner === node.id).map(shard).join(", ");
  const here = node.id === cluster.node ? `${node.name} (this node)` : node.name;
  return el("tr", {}, cell(here, "name"), cell(node.standing, node.standing === "up" ? "" : "warn"), cell(shards || "none", shards ? "" : "soft"),
    cell(node.addresses.kafka), cell(node.addresses.mqtt), cell(node.addresses.amqp));
};

const clusterRows = (cluster) => {
  const rows = cluster.nodes.map((node) => nodeRow(cluster, node));
  const nobody = cluster.shards.filter((shard) => shard.owner === null).map((shard) => shard.shard).join(", ");
  return nobody ? [...rows, el("tr", {}, cell("nobody", "name"), cell("", "warn"), cell(nobody, "warn"))] : rows;
};

const refresh = async () => {
  const [status, streams, edges, routes, cluster] = await Promise.all(["status", "streams", "edges", "routes", "cluster"].map((name) => get(`/api/${name}`)));
  const now = { at: performance.now(), values: new Map() };
  const rows = streams.streams.map((stream) => streamRow(now, stream));
  const total = rows.reduce((sum, { value }) => (value === null ? sum : (sum ?? 0) + value), null);
  document.getElementById("streams").replaceChildren(...rows.map(({ row }) => row));
  document.getElementById("no-streams").hidden = rows.length > 0;
  document.getElementById("edges").replaceChildren(...edges.edges.map((edge) => edgeRow(now, edge)));
  document.getElementById("no-edges").hidden = edges.edges.length > 0;
  const rest = { filter: "everything else", stream: routes.catch_all, partition: "edge" };
  document.getElementById("routes").replaceChildren(...[...routes.routes, rest].map(routeRow));
  document.getElementById("cluster").hidden = !cluster.member;
  document.getElementById("nodes").replaceChildren(...clusterRows(cluster));
  show("rate", rate(total));
  show("connected", `${edges.edges.filter((edge) => edge.connected).length} of ${edges.edges.length}`);
  show("stream-count", count(rows.length));
  show("uptime", span(status.uptime_s));
  show("version", `· version ${status.version}`);
  last = now;
  state(status.ready ? "ready" : "not ready", status.ready);
};

const state = (text, good) => {
  const node = document.getElementById("state");
  node.textContent = text;
  node.className = `state ${good ? "good" : "bad"}`;
};

const loop = async () => {
  try {
    if (!document.hidden) await refresh();
  } catch (error) {
    state(`no answer: ${error.message}`, false);
    last = null;
  }
  setTimeout(loop, PERIOD_MS);
};
loop();
