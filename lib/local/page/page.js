// Draws the data of GET /local/overview once a second. All files are served by the engine.
"use strict";

const POLL_MS = 1000;
// Rates and latencies are averaged over this many seconds.
const SMOOTH_S = 5;
// A worker without a report for this long is stopped; the same as SILENCE_S in lib/local/fleet.py.
const SILENCE_S = 30;
// What a worker serves is averaged over this many seconds: enough for some requests that take seconds.
const SERVED_S = 60;
const MAX_ERRORS = 20;
const MAX_REQUESTS = 15;

const byId = (id) => document.getElementById(id);
const compact = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const timeOfDay = new Intl.DateTimeFormat("en", { timeStyle: "medium", hour12: false });

const known = { workers: new Map(), finished: [], plans: [], errors: [], now: 0, window_s: 600, open_requests: 0 };
let since = 0;

// Data from the engine

/** Add an answer of /local/overview to `known`, and drop what is older than the charts. */
function merge(overview) {
  since = known.now = overview.now;
  known.window_s = overview.window_s;
  known.open_requests = overview.open_requests;
  known.plans = overview.plans;
  const oldest = overview.now - overview.window_s;
  for (const worker of overview.workers) {
    const before = known.workers.get(worker.id);
    const samples = [...(before ? before.samples : []), ...worker.samples];
    if (worker.error_msg && (!before || before.error_msg !== worker.error_msg)) {
      known.errors.unshift({ at: worker.reported_at, id: worker.id, text: worker.error_msg });
    }
    known.workers.set(worker.id, { ...worker, samples: samples.filter((s) => s.at > oldest) });
  }
  known.finished = [...known.finished, ...overview.finished].filter((f) => f.at > oldest);
  known.errors.length = Math.min(known.errors.length, MAX_ERRORS);
}

/** Forget all workers and requests: the engine was restarted, and its numbers start again. */
function reset() {
  known.workers.clear();
  known.finished = [];
  since = 0;
}

// Time series with one value per second

function seconds() {
  const end = Math.floor(known.now);
  const first = Math.min(
    end - 60,
    ...[...known.workers.values()].map((w) => (w.samples.length ? Math.floor(w.samples[0].at) : end)),
  );
  const start = Math.max(first, end - known.window_s);
  return Array.from({ length: end - start + 1 }, (_, i) => start + i);
}

/** The sum over all workers of the latest `field` at each time; silent workers don't count. */
function sumOfLatest(times, field) {
  const sums = times.map(() => 0);
  for (const { samples } of known.workers.values()) {
    let next = 0;
    times.forEach((time, i) => {
      while (next < samples.length && samples[next].at <= time + 1) next += 1;
      const last = samples[next - 1];
      if (last && time - last.at < SILENCE_S) sums[i] += last[field];
    });
  }
  return sums;
}

/** The sum of `value` over `events` per second, averaged over the last SMOOTH_S seconds, at each time. */
function rate(times, events, value) {
  const sums = times.map(() => 0);
  for (const event of events) {
    const from = Math.floor(event.at) - times[0];
    for (let i = Math.max(0, from); i < Math.min(times.length, from + SMOOTH_S); i += 1) {
      sums[i] += value(event) / SMOOTH_S;
    }
  }
  return sums;
}

/** The quantile `q` of the total time of the requests finished in the last SMOOTH_S seconds, at each time. */
function latency(times, q) {
  const slots = times.map(() => []);
  for (const finish of known.finished) {
    if (finish.status === "Rejected" || !finish.total_s) continue;
    const from = Math.floor(finish.at) - times[0];
    for (let i = Math.max(0, from); i < Math.min(times.length, from + SMOOTH_S); i += 1) {
      slots[i].push(finish.total_s);
    }
  }
  return slots.map((values) => {
    values.sort((a, b) => a - b);
    return values.length ? values[Math.min(values.length - 1, Math.floor(q * values.length))] : null;
  });
}

/** The workload per second that a worker has served in the last SERVED_S seconds: its capacity, if it is busy. */
function served(worker) {
  const recent = worker.samples.filter((s) => s.at > known.now - SERVED_S);
  return recent.reduce((total, s) => total + s.cur_perf, 0) / SERVED_S;
}

const allSamples = () => [...known.workers.values()].flatMap((w) => w.samples);

const CHARTS = [
  {
    id: "load",
    title: "Load against capacity",
    unit: "workload; capacity in workload per second",
    names: ["load in flight", "measured capacity"],
    values: (times) => [sumOfLatest(times, "cur_load"), sumOfLatest(times, "max_perf")],
  },
  {
    id: "throughput",
    title: "Throughput",
    unit: "workload per second",
    names: ["throughput"],
    values: (times) => [rate(times, allSamples(), (s) => s.cur_perf)],
  },
  {
    id: "queue",
    title: "Requests",
    unit: "number in flight; finished per second",
    names: ["in flight", "finished"],
    values: (times) => [sumOfLatest(times, "working"), rate(times, known.finished, () => 1)],
  },
  {
    id: "latency",
    title: "Latency",
    unit: "seconds, finished requests",
    names: ["median", "p95"],
    values: (times) => [latency(times, 0.5), latency(times, 0.95)],
  },
];

// Drawing

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function plot(chart, figure) {
  const axis = () => ({ stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 } });
  const stroke = ["--first", "--second"];
  const lines = chart.names.map((label, i) => ({
    label,
    stroke: colour(stroke[i]),
    width: 2,
    dash: i ? [6, 4] : undefined,
    value: (_, value) => (value === null || value === undefined ? "–" : compact.format(value)),
  }));
  const options = {
    width: Math.max(280, figure.clientWidth),
    height: 190,
    scales: { y: { range: (_, __, high) => [0, high > 0 ? high * 1.1 : 1] } },
    axes: [axis(), { ...axis(), size: 60, values: (_, ticks) => ticks.map((t) => compact.format(t)) }],
    series: [{ value: (_, at) => (at ? timeOfDay.format(at * 1000) : "–") }, ...lines],
  };
  return new uPlot(options, [[], ...chart.names.map(() => [])], figure);
}

function makeCharts() {
  byId("charts").replaceChildren();
  for (const chart of CHARTS) {
    const figure = element("figure");
    figure.id = `chart-${chart.id}`;
    figure.setAttribute("role", "img");
    const caption = element("figcaption", chart.title + " ");
    caption.append(element("span", chart.unit));
    figure.append(caption);
    byId("charts").append(figure);
    chart.figure = figure;
    chart.plot = plot(chart, figure);
  }
}

function drawCharts() {
  const times = seconds();
  for (const chart of CHARTS) {
    const values = chart.values(times);
    chart.plot.setData([times, ...values]);
    const now = values.map((series, i) => `${chart.names[i]} ${compact.format(series[series.length - 1] ?? 0)}`);
    chart.figure.setAttribute("aria-label", `${chart.title}, ${chart.unit}. Now: ${now.join(", ")}.`);
  }
}

function drawTiles() {
  const workers = [...known.workers.values()];
  const ready = workers.filter((w) => w.status === "ready");
  const sum = (list, field) => list.reduce((total, w) => total + w[field], 0);
  const times = Array.from({ length: SMOOTH_S }, (_, i) => Math.floor(known.now) - SMOOTH_S + i);
  const throughput = rate(times, allSamples(), (s) => s.cur_perf).pop();
  const failed = known.finished.filter((f) => f.status === "Error").length;
  const tiles = [
    ["Workers (ready / all)", `${ready.length} / ${workers.length}`],
    ["Load", compact.format(sum(workers, "cur_load"))],
    ["Capacity (per s)", compact.format(sum(ready, "measured_perf"))],
    ["Throughput (per s)", compact.format(throughput)],
    ["Requests in flight", String(sum(workers, "reqs_working"))],
    ["Open requests at the engine", String(known.open_requests)],
    ["Failed requests (10 min)", String(failed)],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value]) => {
      const tile = element("div");
      tile.append(element("dt", name), element("dd", value));
      return tile;
    }),
  );
}

/** A worker's states as spans `[state, from, to]`, times in Unix seconds; equal neighbours are joined. */
function stateSpans(worker) {
  const spans = [];
  const add = (state, from, to) => {
    const last = spans[spans.length - 1];
    if (last && last[0] === state) last[2] = to;
    else spans.push([state, from, to]);
  };
  worker.samples.forEach((sample, i) => {
    const next = worker.samples[i + 1];
    const end = next ? next.at : known.now;
    const alive = Math.min(end, sample.at + SILENCE_S);
    add(sample.state, sample.at, alive);
    if (end > alive) add("stopped", alive, end);
  });
  return spans;
}

/** A bar with a worker's states over the time range of the charts. */
function stateHistory(worker, start) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("class", "state-history");
  made.setAttribute("viewBox", `0 0 ${known.now - start} 10`);
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("shape-rendering", "crispEdges");
  made.setAttribute("role", "img");
  const spans = stateSpans(worker);
  for (const [state, from, to] of spans) {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    rect.setAttribute("class", state);
    rect.setAttribute("x", Math.max(0, from - start));
    rect.setAttribute("width", to - Math.max(from, start));
    rect.setAttribute("height", 10);
    made.append(rect);
  }
  const texts = spans.map(([state, from, to]) => `${state} for ${Math.round(to - from)} s`);
  made.setAttribute("aria-label", texts.join(", then "));
  return made;
}

function drawWorkers() {
  const workers = [...known.workers.values()];
  const start = seconds()[0];
  byId("no-workers").hidden = workers.length > 0;
  byId("workers").hidden = workers.length === 0;
  const rows = workers.map((worker) => {
    const row = element("tr");
    const name = element("th", `${worker.id} `);
    name.scope = "row";
    name.append(element("span", `${worker.endpoint} · ${worker.url}`, "hint"));
    const state = element("td");
    state.append(element("span", worker.status, `state ${worker.status}`));
    if (worker.error_msg) state.title = worker.error_msg;
    const bar = element("td");
    bar.append(stateHistory(worker, start));
    const queue_s = worker.measured_perf > 0 ? `${compact.format(worker.cur_load / worker.measured_perf)} s` : "–";
    const numbers = [
      compact.format(worker.cur_load),
      worker.measured_perf > 0 ? compact.format(worker.measured_perf) : "–",
      compact.format(served(worker)),
      queue_s,
      String(worker.reqs_working),
      String(worker.routed),
      `${Math.max(0, Math.round(known.now - worker.reported_at))} s ago`,
    ];
    row.append(name, state, bar, ...numbers.map((text) => element("td", text, "number")));
    return row;
  });
  byId("workers").tBodies[0].replaceChildren(...rows);
}

function drawPlans() {
  const rows = known.plans.map((plan) => {
    const row = element("tr");
    const name = element("th", plan.endpoint);
    name.scope = "row";
    const numbers = [
      compact.format(plan.load),
      compact.format(plan.target_capacity),
      compact.format(plan.ready_capacity),
      compact.format(plan.cold_capacity),
      `${plan.workers_ready} / ${plan.workers_ready_wanted}`,
      `${plan.workers_cold} / ${plan.workers_cold_wanted}`,
      plan.autoscale ? `${plan.autoscale.running} / ${plan.autoscale.most}` : "–",
    ];
    row.append(name, ...numbers.map((text) => element("td", text, "number")), element("td", plan.reason));
    return row;
  });
  byId("plans").tBodies[0].replaceChildren(...rows);
}

function drawLists() {
  const errors = known.errors.map((error) =>
    element("li", `${timeOfDay.format(error.at * 1000)}, worker ${error.id}: ${error.text}`),
  );
  byId("errors").replaceChildren(...(errors.length ? errors : [element("p", "No errors so far.", "hint")]));
  const rows = known.finished.slice(-MAX_REQUESTS).reverse().map((finish) => {
    const row = element("tr");
    row.append(
      element("td", timeOfDay.format(finish.at * 1000)),
      element("td", String(finish.request_idx), "number"),
      element("td", String(finish.worker_id), "number"),
      element("td", finish.status, finish.status),
      element("td", finish.queue_s.toFixed(3), "number"),
      element("td", finish.total_s.toFixed(3), "number"),
    );
    return row;
  });
  byId("requests").tBodies[0].replaceChildren(...rows);
}

// Polling

function showConnection(text, lost) {
  const connection = byId("connection");
  if (connection.textContent !== text) connection.textContent = text;
  connection.classList.toggle("lost", lost);
}

async function refresh() {
  try {
    const answer = await fetch(`/local/overview?since=${since}`);
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const overview = await answer.json();
    // After a restart of the engine, its clock may be behind, or workers are missing.
    if (overview.now < known.now - 5 || overview.workers.length < known.workers.size) reset();
    merge(overview);
    showConnection("live", false);
  } catch (error) {
    showConnection(`no connection to the engine (${error.message})`, true);
    return;
  }
  drawTiles();
  drawWorkers();
  drawCharts();
  drawPlans();
  drawLists();
}

async function run() {
  await refresh();
  setTimeout(run, POLL_MS);
}

makeCharts();
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => {
  makeCharts();
  drawCharts();
});
new ResizeObserver(() => {
  for (const chart of CHARTS) {
    chart.plot.setSize({ width: Math.max(280, chart.figure.clientWidth), height: 190 });
  }
}).observe(byId("charts"));
run();
