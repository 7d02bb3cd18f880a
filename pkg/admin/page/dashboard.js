// SPDX-License-Identifier: Apache-2.0
// The dashboard: asks this gateway's API each second, and shows what it says.
"use strict";

const charts = { packets: "Packets a second", requests: "Requests a second by status", latency: "Time of a request", handshakes: "TLS handshakes a second" };
const liveEvery = 1000, chartsEvery = 5000; // ms
const $ = (id) => document.getElementById(id);
let role = "", timer = 0, drawn = 0;

async function api(method, path, body) {
  const reply = await fetch(path, { method, headers: body ? { "Content-Type": "application/json" } : {}, body: body && JSON.stringify(body) });
  if (reply.status === 401) { showLogin(); }
  const answer = await reply.json().catch(() => ({}));
  if (!reply.ok) { throw new Error(answer.detail || `status ${reply.status}`); }
  return answer;
}

function showLogin() {
  clearTimeout(timer);
  $("main").hidden = $("logout").hidden = true;
  $("login").hidden = false;
  $("who").textContent = "";
  $("state").textContent = "not logged in";
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const reply = await fetch("/v1/session", { method: "POST", headers: { Authorization: "Bearer " + $("token").value.trim() } });
  const answer = await reply.json().catch(() => ({}));
  $("refused").textContent = reply.ok ? "" : answer.detail || `status ${reply.status}`;
  $("token").value = "";
  if (reply.ok) { start(); }
});
$("logout").addEventListener("click", async () => { await api("DELETE", "/v1/session").catch(() => {}); showLogin(); });
$("confirm").addEventListener("click", () => act("Keep the configuration that waits?", "POST", "/v1/confirm"));

$("examine").addEventListener("click", async () => {
  $("examined").textContent = "looking …";
  try {
    const r = await api("GET", "/v1/doctor");
    fill($("findings"), r.findings.map((f) => ({ ...f, mend: f.mend || "" })), ["severity", "object", "title", "evidence", "mend"]);
    $("examined").textContent = `${r.checks} checks, ${r.findings.length} findings`;
  } catch (e) { $("examined").textContent = e.message; }
});

// act asks, does, and says what came of it.
async function act(question, method, path, body) {
  $("ask-text").textContent = question;
  $("ask").showModal();
  const answer = await new Promise((done) => $("ask").addEventListener("close", () => done($("ask").returnValue), { once: true }));
  if (answer !== "yes") { return; }
  try { await api(method, path, body); $("said").textContent = ""; } catch (e) { $("said").textContent = e.message; }
}

function brief(v) {
  if (v === null || v === undefined) { return "–"; }
  for (const [unit, name] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) { if (Math.abs(v) >= unit) { return +(v / unit).toPrecision(3) + name; } }
  return String(+v.toPrecision(3));
}
function spell(key, v) {
  if (typeof v !== "number") { return v === null ? "–" : v; }
  if (/^p\d+_seconds$/.test(key)) { return v < 1e-3 ? brief(v * 1e6) + " µs" : v < 1 ? brief(v * 1e3) + " ms" : brief(v) + " s"; }
  if (key.endsWith("_seconds")) { return Math.round(v) + " s"; }
  if (key.endsWith("_percent")) { return Math.round(v) + " %"; }
  if (key === "pid") { return String(v); }
  return brief(v);
}
const title = (key) => key.replace(/_per_second$/, "/s").replace(/_seconds$/, "").replace(/_percent$/, " %").replace(/^status_/, "").replaceAll("_", " ");

// fill makes a table out of rows with the same keys. extra appends cells to a row.
function fill(table, rows, keys, extra) {
  const head = table.tHead || table.createTHead(), body = table.tBodies[0] || table.createTBody();
  if (rows.length === 0) { head.replaceChildren(); body.replaceChildren(row("td", ["none"], () => "none")); return; }
  head.replaceChildren(row("th", keys.map(title), (i) => typeof rows[0][keys[i]] === "number" ? "number" : ""));
  body.replaceChildren(...rows.map((r) => {
    const tr = row("td", keys.map((k) => spell(k, r[k])), (i) => typeof r[keys[i]] === "number" ? "number" : keys[i] === "state" ? r.state : "");
    if (extra) { extra(tr, r); }
    return tr;
  }));
}
function row(kind, texts, className) {
  const tr = document.createElement("tr");
  texts.forEach((text, i) => {
    const cell = document.createElement(kind);
    cell.textContent = text;
    cell.className = className(i);
    if (kind === "th") { cell.scope = "col"; }
    tr.append(cell);
  });
  return tr;
}

function pane(name) {
  const known = $("pane-" + name);
  if (known) { return known; }
  const section = document.createElement("section"), h2 = document.createElement("h2"), box = document.createElement("div"), table = document.createElement("table");
  h2.textContent = name;
  h2.id = "title-" + name;
  section.setAttribute("aria-labelledby", h2.id);
  box.className = "scroll";
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-labelledby", h2.id);
  table.id = "pane-" + name;
  box.append(table);
  section.append(h2, box);
  $("panes").append(section);
  return table;
}

// verdictButton holds a source at the first step for ten minutes, or ends what is held.
function verdictButton(tr, r) {
  const button = document.createElement("button"), td = document.createElement("td");
  button.type = "button";
  button.textContent = r.verdict ? "forgive" : "thin";
  button.addEventListener("click", () => r.verdict
    ? act(`End the verdict on ${r.source}?`, "POST", "/v1/verdicts/remove", { source: r.source })
    : act(`Drop three of four new connections of ${r.source} for ten minutes?`, "POST", "/v1/verdicts", { source: r.source, step: "thin", ttl_ns: 600e9, note: "dashboard" }));
  td.append(button);
  tr.append(td);
}

const columns = {
  queues: ["interface", "queue", "passed_per_second", "dropped_per_second", "dropped_percent", "bits_per_second", "reason"],
  cores: ["worker", "core", "pid", "state", "cpu_percent", "requests_per_second", "under_way", "connections", "accepted_per_second", "handshakes_per_second", "received_bits_per_second", "sent_bits_per_second", "restarts"],
  routes: ["route", "requests_per_second", "status_2xx_per_second", "status_3xx_per_second", "status_4xx_per_second", "status_5xx_per_second", "p50_seconds", "p99_seconds", "requests"],
  upstreams: ["upstream", "ok_per_second", "failed_per_second", "most_failed", "p50_seconds", "p99_seconds", "tries"],
  limits: ["limit", "passed_per_second", "delayed_per_second", "rejected_per_second", "would_reject_per_second"],
  requests: ["outcome", "per_second", "requests"],
  drops: ["interface", "queue", "reason", "packets_per_second", "bits_per_second", "packets"],
  sources: ["source", "requests_per_second", "limited_per_second", "samples", "outcome", "ago_seconds", "verdict", "left_seconds", "interface", "requests"],
  ledger: ["hop", "where", "verdict", "reason", "per_second", "count"],
  keys: ["key", "requests_per_second", "limited_per_second", "source", "status_4xx_per_second", "status_5xx_per_second", "ago_seconds", "requests", "sent_bytes"],
};

function showLive(f) {
  const g = f.gateway, t = f.totals;
  $("state").textContent = `generation ${g.generation}, ${g.workers_ready} of ${g.workers} workers ready, up ${Math.round(g.uptime_ns / 1e9)} s`;
  $("state").className = g.workers_ready < g.workers ? "bad" : "";
  $("trouble").textContent = (f.trouble || []).join("; ");
  const steps = [
    ["received", t.packets_passed_per_second + t.packets_dropped_per_second, "packets/s at the NIC"], ["dropped", t.packets_dropped_per_second, "packets/s in the kernel plane"],
    ["connections", t.connections, "open"], ["handshakes", t.handshakes_per_second, "TLS/s"], ["requests", t.requests_per_second, "answered/s"],
    ["4xx", t.status_4xx_per_second, "of them/s"], ["5xx", t.status_5xx_per_second, "of them/s"], ["unexplained", t.unexplained, "counts that differ"],
  ];
  $("flow").replaceChildren(...steps.map(([name, value, what]) => {
    const li = document.createElement("li"), b = document.createElement("b"), small = document.createElement("small");
    b.textContent = brief(value);
    b.id = "flow-" + name;
    small.textContent = what;
    li.append(name, b, small);
    return li;
  }));
  for (const p of f.panes) {
    const keys = columns[p.name] || Object.keys(p.rows[0] || {});
    fill(pane(p.name), p.rows.slice(0, 100), keys, ["sources", "keys"].includes(p.name) && role !== "viewer" ? verdictButton : null);
  }
}

function showStatus(s) {
  fill($("servers"), (s.servers || []).map((v) => ({ upstream: v.upstream, server: v.address, name: v.name || "", weight: v.weight, state: v.drained ? "drained" : v.state, cause: v.cause || "" })),
    ["upstream", "server", "name", "weight", "state", "cause"]);
  const waits = s.confirm_within_ns > 0;
  $("pending").hidden = !waits;
  $("confirm").hidden = role !== "admin";
  if (waits) { $("pending-text").textContent = `Generation ${s.generation} is undone in ${Math.round(s.confirm_within_ns / 1e9)} s unless it is confirmed.`; }
}

function drawCharts() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  for (const name of Object.keys(charts)) {
    let img = $("chart-" + name);
    if (!img) {
      const figure = document.createElement("figure");
      img = document.createElement("img");
      img.id = "chart-" + name;
      img.alt = `${charts[name]}, as lines over the last hour; /v1/history has the numbers`;
      const caption = document.createElement("figcaption");
      caption.textContent = charts[name];
      figure.append(caption, img);
      $("charts").append(figure);
    }
    const width = Math.min(1600, Math.max(280, Math.round(img.parentElement.clientWidth) || 640));
    const next = new Image();
    next.onload = () => { img.src = next.src; };
    next.src = `/v1/charts/${name}?width=${width}&theme=${dark ? "dark" : "light"}&at=${Date.now()}`;
  }
}

async function tick() {
  try {
    const [live, status] = await Promise.all([api("GET", "/v1/live"), api("GET", "/v1/status")]);
    showLive(live);
    showStatus(status);
    document.body.dataset.shown = String(Date.now());
    if (Date.now() - drawn > chartsEvery) { drawn = Date.now(); drawCharts(); }
  } catch (e) {
    $("state").textContent = "the gateway does not answer: " + e.message;
    $("state").className = "bad";
    if (!$("login").hidden) { return; }
  }
  timer = setTimeout(tick, liveEvery);
}

async function start() {
  try {
    const who = await api("GET", "/v1/whoami");
    role = who.role;
    $("who").textContent = `${who.name} (${who.role})`;
    $("login").hidden = true;
    $("main").hidden = $("logout").hidden = false;
    drawn = 0;
    clearTimeout(timer);
    tick();
  } catch { showLogin(); }
}
start();
