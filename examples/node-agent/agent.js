// A node of a Comity network in JavaScript, with one agent. All it knows of the network is in docs/wire.md and docs/schemas/.
//
//   comity context invite parrot --role node
//   node agent.js parrot.invite

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { decode, encode } from "@msgpack/msgpack";
import { connect, credsAuthenticator, headers } from "@nats-io/transport-node";

const { urls, network, credentials, ca } = JSON.parse(readFileSync(process.argv[2]));
const claims = credentials.match(/NATS USER JWT-+\s*(\S+)/)[1].split(".")[1];
const me = JSON.parse(Buffer.from(claims, "base64url")).name; // credentials name the process
const incarnation = Date.now();
const BEACON_MS = 500;

// What it can do: plain functions answer, generators stream

const capabilities = {
  shout: {
    description: "Say it louder.",
    input_schema: { type: "object", properties: { text: { type: "string" } }, required: ["text"] },
    output_schema: { type: "string" },
    run: ({ text }) => `${text.toUpperCase()}!`,
  },
  spell: {
    description: "Say it letter by letter.",
    input_schema: { type: "object", properties: { text: { type: "string" } }, required: ["text"] },
    output_schema: { type: "string", "x-parts": { type: "string" } },
    run: async function* ({ text }) {
      for (const letter of text) yield letter;
      return text; // a generator of JavaScript can return its final value
    },
  },
};

// Speaking

const nc = await connect({
  servers: urls, name: me, inboxPrefix: `_INBOX_${me}`, maxReconnectAttempts: -1, ...(ca && { tls: { ca } }),
  authenticator: credsAuthenticator(new TextEncoder().encode(credentials)),
});
const json = (value) => new TextEncoder().encode(JSON.stringify(value ?? null));
const parse = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
const subject = (kind, name) => `cy.${network}.${kind}.${name}.${me}`;
const say = (address, ...items) => nc.publish(address, encode(items));
const tell = (who, ...items) => say(subject("to", who), ...items);
const lead = (...items) => say(subject("topic", "leader"), ...items);

async function record(path, value, ttl) {
  const lifetime = headers();
  lifetime.set("Nats-TTL", `${ttl}s`);
  await nc.request(`cy.${network}.reg.${me}.${path}`, value, { headers: lifetime, timeout: 5000 });
}

async function announce() {
  const offers = [];
  for (const [name, { run, ...about }] of Object.entries(capabilities)) {
    const schema = json({ name, version: "1.0", ...about });
    const hash = createHash("sha256").update(schema).digest("hex").slice(0, 32);
    await record(`schemas.${hash}`, schema, 3600);
    offers.push([name, "1.0", hash]);
  }
  const resources = [0, 0, 0, 0, 0, 0];
  const agent = [`${me}/parrot`, "parrot", "", "", me, "", "", ["javascript"], {}, resources, 8, 0, {}, "active", incarnation, offers];
  await record("agents.0", encode([agent]), 3600);
  await record("nodes.=", encode([me, incarnation, hostname(), process.pid]), 30);
}

// The lease: a beacon twice a second; the leader acknowledges it

let seq = 0;
let term = -1;
let leader = "";
let leaseUntil = 0;
const sentAt = new Map();
const running = new Map(); // task -> its attempt
const reports = new Map(); // task/epoch -> what the leader has not settled

function beacon() {
  sentAt.set(++seq, performance.now());
  sentAt.delete(seq - 100);
  const memory = process.memoryUsage().rss / 2 ** 20;
  lead([60, seq, incarnation, 0, 0, memory, running.size, 1, 0, 0, false, {}, Date.now()]);
}

function acknowledged([, number, itsTerm, leaseS, , known], sender) {
  if (itsTerm < term || !sentAt.has(number)) return;
  if (itsTerm > term || sender !== leader) reports.forEach((report) => lead(report));
  [term, leader] = [itsTerm, sender];
  leaseUntil = sentAt.get(number) + leaseS * 1000;
  if (!known) announce().then(beacon, lost);
}

// Attempts

async function run(item) {
  const [, task, epoch, itsTerm, forIncarnation, , name, input, number, , , submitter] = item;
  const known = running.get(task);
  if (known?.epoch >= epoch) return reports.has(`${task}/${epoch}`) && lead(reports.get(`${task}/${epoch}`));
  if (itsTerm < term || forIncarnation !== incarnation || performance.now() > leaseUntil || !(input instanceof Uint8Array)) {
    return report(task, epoch, [64, task, epoch, "this node cannot run it now"]);
  }
  const attempt = { epoch, canceled: false, parts: [], total: -1, readers: new Map() };
  running.set(task, attempt);
  lead([61, task, epoch]);
  const began = performance.now();
  try {
    const made = capabilities[name].run(parse(input));
    let value = await made;
    if (made[Symbol.asyncIterator]) {
      tell(submitter, [130, task, epoch, number]);
      value = await stream(made, attempt);
    }
    if (!attempt.canceled) report(task, epoch, [62, task, epoch, json(value), Math.max(1, Math.round(performance.now() - began))]);
  } catch (error) {
    report(task, epoch, [63, task, epoch, [error.name, error.message, true]]);
  }
  setTimeout(() => running.get(task) === attempt && running.delete(task), 15_000).unref(); // readers may still come
}

function report(task, epoch, item) {
  reports.set(`${task}/${epoch}`, item);
  lead(item);
}

function stopped([, task, epoch]) {
  const attempt = running.get(task);
  if (attempt?.epoch !== epoch) return;
  attempt.canceled = true;
  report(task, epoch, [63, task, epoch, ["task-canceled", "told to stop", false], true]);
}

// Parts of a stream: kept here, sent to each reader as far as it has room

async function stream(generator, attempt) {
  for (;;) {
    const { value, done } = await generator.next();
    if (attempt.canceled) return null;
    if (done) {
      attempt.total = attempt.parts.length;
      for (const reader of attempt.readers.values()) serve(attempt, reader);
      return value;
    }
    attempt.parts.push(json(value));
    for (const reader of attempt.readers.values()) serve(attempt, reader);
  }
}

function read([, ref, task, epoch, , after, until, forMs, again], sender) {
  const attempt = running.get(task);
  if (forMs === 0) return attempt?.readers.delete(ref);
  if (attempt?.epoch !== epoch) return tell(sender, [134, ref, epoch]);
  const reader = attempt.readers.get(ref) ?? { ref, sender, sent: after };
  attempt.readers.set(ref, reader);
  reader.until = until;
  if (again) reader.sent = after;
  serve(attempt, reader);
}

function serve(attempt, reader) {
  while (reader.sent < Math.min(reader.until, attempt.parts.length)) {
    tell(reader.sender, [132, reader.ref, attempt.epoch, ++reader.sent, attempt.parts[reader.sent - 1]]);
  }
  if (reader.sent === attempt.total) tell(reader.sender, [133, reader.ref, attempt.epoch, attempt.total]);
}

// Messages

async function message([, envelope], sender) {
  const [id, performative, from, receiver, topic, protocol, replyTo, conversation, , , , , , trace] = envelope;
  if (from.split("/")[0] !== sender || receiver !== `${me}/parrot` || !["request", "query"].includes(performative)) return;
  let [how, body] = ["not-understood", { message: `${receiver} has no function for topic '${topic}'` }];
  if (capabilities[topic]) {
    try {
      const made = capabilities[topic].run(parse(envelope[16]));
      [how, body] = ["inform", made[Symbol.asyncIterator] ? await stream(made, { parts: [], readers: new Map() }) : await made];
    } catch (error) {
      [how, body] = ["failure", { code: error.name, message: error.message }];
    }
  }
  const reply = [
    `${me}-${incarnation}-${++seq}`, how, receiver, replyTo || from, topic, protocol, "", conversation, id, 0, Date.now(), 0,
    "application/json", trace, [], 0, json(body),
  ];
  tell((replyTo || from).split("/")[0], [80, reply]);
}

// Listening: the sender is the subject's last part, and the server vouches for it

const takes = {
  40: (item, sender) => sender === leader && run(item).catch(lost),
  41: (item, sender) => sender === leader && stopped(item),
  42: ([, settled], sender) => sender === leader && settled.forEach(([task, epoch]) => reports.delete(`${task}/${epoch}`)),
  43: acknowledged,
  44: (item, sender) => sender === leader && lost(new Error(`evicted: ${item[2]}`)),
  80: (item, sender) => message(item, sender).catch(lost),
  82: ([, ref], sender) => tell(sender, [83, ref]),
  131: read,
};

function receive(error, delivery) {
  if (error) return lost(error);
  const sender = delivery.subject.split(".").at(-1);
  let items;
  try {
    items = decode(delivery.data);
  } catch {
    return; // not a message of Comity's
  }
  for (const item of Array.isArray(items) ? items : []) takes[item[0]]?.(item, sender);
}

function lost(error) {
  console.error(error.message);
  process.exit(1); // whoever started it may start it again, with a higher incarnation
}

nc.subscribe(`cy.${network}.to.${me}.*`, { callback: receive });
nc.subscribe(`cy.${network}.topic.all.*`, { callback: receive });
await nc.flush();
await announce();
setInterval(beacon, BEACON_MS);
setInterval(() => record("nodes.=", encode([me, incarnation, hostname(), process.pid]), 30).catch(lost), 10_000);
setInterval(() => reports.forEach((item) => lead(item)), 2_000);
process.on("SIGTERM", async () => {
  lead([67, incarnation]);
  await nc.drain();
  process.exit(0);
});
console.log(JSON.stringify({ node: me, agent: `${me}/parrot`, capabilities: Object.keys(capabilities) }));
