// Draws what GET /local/overview tells, once a second. Nothing is loaded from elsewhere.
"use strict";

const POLL_MS = 1000;
// Throughput is what was served within so many seconds, divided by them.
const SMOOTH_S = 5;
// A worker that is silent for so long is stopped, as the engine has it.
const SILENCE_S = 30;
const MAX_ERRORS = 20;
const MAX_REQUESTS = 15;

const byId = (id) => document.getElementById(id);
const compact = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const clockTime = new Intl.DateTimeFormat("en", { timeStyle: "medium", hour12: false });

const known = { workers: new Map(), finished: [], plans: [], errors: [], now: 0, window_s: 600, open_requests: 0 };
let since = 0;

// What the engine told

function learn(told) {
  since = known.now = told.now;
  known.window_s = told.window_s;
  known.open_requests = told.open_requests;
  known.plans = told.plans;
  const oldest = told.now - told.window_s;
  for (const worker of told.workers) {
    const before = known.workers.get(worker.id);
    const samples = [...(before ? before.samples : []), ...worker.samples];
    if (worker.error_msg && (!before || before.error_msg !== worker.error_msg)) {
      known.errors.unshift({ at: worker.reported_at, id: worker.id, text: worker.error_msg });
    }
    known.workers.set(worker.id, { ...worker, samples: samples.filter((s) => s.at > oldest) });
  }
  known.finished = [...known.finished, ...told.finished].filter((f) => f.at > oldest);
  known.errors.length = Math.min(known.errors.length, MAX_ERRORS);
}

function forget() {
  // The engine was started anew: what it numbered before means nothing.
  known.workers.clear();
  known.finished = [];
  since = 0;
}

// Series over time, one value a second

function seconds() {
  const end = Math.floor(known.now);
  const first = Math.min(
    end - 60,
    ...[...known.workers.values()].map((w) => (w.samples.length ? Math.floor(w.samples[0].at) : end)),
  );
  const start = Math.max(first, end - known.window_s);
  return Array.from({ length: end - start + 1 }, (_, i) => start + i);
}

/** The last value of `field` that each worker told by each time, added up; nothing once it is silent. */
function held(times, field) {
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

/** `value` of each of `events`, per second, over the last few seconds of each time. */
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

/** The `share` quantile of the total time of requests that finished within the last seconds of each time. */
function latency(times, share) {
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
    return values.length ? values[Math.min(values.length - 1, Math.floor(share * values.length))] : null;
  });
}

const samplesOfAll = () => [...known.workers.values()].flatMap((w) => w.samples);

const CHARTS = [
  {
    id: "load",
    title: "Load against capacity",
    unit: "workload; capacity per second",
    names: ["load in flight", "measured capacity"],
    values: (times) => [held(times, "cur_load"), held(times, "max_perf")],
  },
  {
    id: "throughput",
    title: "Throughput",
    unit: "workload served per second",
    names: ["throughput"],
    values: (times) => [rate(times, samplesOfAll(), (s) => s.cur_perf)],
  },
  {
    id: "queue",
    title: "Requests",
    unit: "in flight; finished per second",
    names: ["in flight", "finished"],
    values: (times) => [held(times, "working"), rate(times, known.finished, () => 1)],
  },
  {
    id: "latency",
    title: "Latency",
    unit: "seconds, of requests finished",
    names: ["median", "95 of 100"],
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
    series: [{ value: (_, at) => (at ? clockTime.format(at * 1000) : "–") }, ...lines],
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
    const now = values.map((of, i) => `${chart.names[i]} ${compact.format(of[of.length - 1] ?? 0)}`);
    chart.figure.setAttribute("aria-label", `${chart.title}, ${chart.unit}. Now: ${now.join(", ")}.`);
  }
}

function drawTiles() {
  const workers = [...known.workers.values()];
  const ready = workers.filter((w) => w.status === "ready");
  const sum = (of, field) => of.reduce((total, w) => total + w[field], 0);
  const times = Array.from({ length: SMOOTH_S }, (_, i) => Math.floor(known.now) - SMOOTH_S + i);
  const throughput = rate(times, samplesOfAll(), (s) => s.cur_perf).pop();
  const failed = known.finished.filter((f) => f.status === "Error").length;
  const tiles = [
    ["Workers ready", `${ready.length} of ${workers.length}`],
    ["Load", compact.format(sum(workers, "cur_load"))],
    ["Capacity, per s", compact.format(sum(ready, "measured_perf"))],
    ["Throughput, per s", compact.format(throughput)],
    ["In flight", String(sum(workers, "reqs_working"))],
    ["Open at the engine", String(known.open_requests)],
    ["Errors, 10 min", String(failed)],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value]) => {
      const tile = element("div");
      tile.append(element("dt", name), element("dd", value));
      return tile;
    }),
  );
}

/** How a worker's state went on, without repetitions: `[state, from, to]`, times in seconds. */
function states(worker) {
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

/** A worker's states over the time of the charts, as a bar. */
function life(worker, start) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("class", "life");
  made.setAttribute("viewBox", `0 0 ${known.now - start} 10`);
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("shape-rendering", "crispEdges");
  made.setAttribute("role", "img");
  const spans = states(worker);
  for (const [state, from, to] of spans) {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    rect.setAttribute("class", state);
    rect.setAttribute("x", Math.max(0, from - start));
    rect.setAttribute("width", to - Math.max(from, start));
    rect.setAttribute("height", 10);
    made.append(rect);
  }
  const told = spans.map(([state, from, to]) => `${state} for ${Math.round(to - from)} s`);
  made.setAttribute("aria-label", told.join(", then "));
  return made;
}

function drawWorkers() {
  const workers = [...known.workers.values()];
  const start = seconds()[0];
  byId("none").hidden = workers.length > 0;
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
    bar.append(life(worker, start));
    const queue_s = worker.measured_perf > 0 ? `${compact.format(worker.cur_load / worker.measured_perf)} s` : "–";
    const numbers = [
      compact.format(worker.cur_load),
      worker.measured_perf > 0 ? compact.format(worker.measured_perf) : "–",
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
      `${plan.workers_ready} of ${plan.workers_ready_wanted}`,
      `${plan.workers_cold} of ${plan.workers_cold_wanted}`,
      plan.autoscale ? `${plan.autoscale.running} of ${plan.autoscale.most}` : "–",
    ];
    row.append(name, ...numbers.map((text) => element("td", text, "number")), element("td", plan.reason));
    return row;
  });
  byId("plans").tBodies[0].replaceChildren(...rows);
}

function drawLists() {
  const errors = known.errors.map((error) =>
    element("li", `${clockTime.format(error.at * 1000)}, worker ${error.id}: ${error.text}`),
  );
  byId("errors").replaceChildren(...(errors.length ? errors : [element("p", "None so far.", "hint")]));
  const rows = known.finished.slice(-MAX_REQUESTS).reverse().map((finish) => {
    const row = element("tr");
    row.append(
      element("td", clockTime.format(finish.at * 1000)),
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

// Running

function say(text, lost) {
  const connection = byId("connection");
  if (connection.textContent !== text) connection.textContent = text;
  connection.classList.toggle("lost", lost);
}

async function step() {
  try {
    const answer = await fetch(`/local/overview?since=${since}`);
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const told = await answer.json();
    if (told.now < known.now - 5 || told.workers.length < known.workers.size) forget();
    learn(told);
    say("live", false);
  } catch (error) {
    say(`no connection to the engine (${error.message})`, true);
    return;
  }
  drawTiles();
  drawWorkers();
  drawCharts();
  drawPlans();
  drawLists();
}

async function run() {
  await step();
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
