// Draws the data of series.js once a second. All files are served by the engine.
"use strict";

const POLL_MS = 1000;
const CHART_HEIGHT = 190;
const MAX_REQUESTS = 20;
// A worker reports at least every 10 s; one that is later by more than this is pointed out.
const LATE_S = 13;

// What the statuses in reports are called in docs/protocol.md, "Outcomes".
const OUTCOMES = {
  Success: "served",
  Error: "errored",
  Cancelled: "cancelled",
  Rejected: "rejected",
  "Given up": "given up",
};
const countOf = (...statuses) => shownEnded().filter((e) => statuses.includes(e.status)).length;

// The unit is part of every value. `caption` says what the values are, `names` the lines. The axis ends at `high` or
// above. `empty` stands in place of lines without any value.
const CHARTS = [
  {
    id: "queue",
    title: "Work queued",
    caption: "seconds: work in flight ÷ capacity of the ready workers",
    names: ["queued"],
    high: 1,
    empty: "Begins when a worker is ready.",
    text: secondsText,
    axis: (value) => `${compact.format(value)} s`,
    values: (times) => [shares(sumOfLatest(times, (s) => s.cur_load), capacity(times), 1)],
  },
  {
    id: "utilisation",
    title: "Utilisation",
    caption: "% of the ready capacity, averaged over 5 s",
    names: ["arriving", "served"],
    high: 100,
    empty: "Begins when a worker is ready.",
    text: percent,
    axis: (value) => `${compact.format(value)} %`,
    values: (times) => {
      const ready = capacity(times);
      const amounts = [arrived, (s) => s.cur_perf];
      return amounts.map((amount) => shares(rate(times, shownSamples(), amount), ready, 100));
    },
  },
  {
    id: "requests",
    title: "Requests",
    caption: "ended per second, averaged over 5 s",
    names: ["served", "errored", "rejected"],
    high: 1,
    empty: "Begins when a request has ended.",
    text: perSecond,
    axis: (value) => `${compact.format(value)}/s`,
    values: (times) =>
      ["Success", "Error", "Rejected"].map((status) =>
        shownEnded().length ? rate(times, shownEnded(), (e) => (e.status === status ? 1 : 0)) : times.map(() => null),
      ),
  },
  {
    id: "latency",
    title: "Latency",
    caption: "seconds from the first ask for a worker to the end, over 30 s",
    names: ["p50", "p95", "p99"],
    high: 0.1,
    empty: "Begins when a request has ended.",
    text: secondsText,
    axis: (value) => `${compact.format(value)} s`,
    values: (times) => latencies(times, [0.5, 0.95, 0.99]),
  },
];

// Drawing

/** A cell of a table; on a narrow screen its `label` stands before it. */
function cell(label, content, className) {
  const made = element("td", typeof content === "string" ? content : undefined, className);
  if (typeof content !== "string") made.append(...content);
  made.dataset.label = label;
  return made;
}

/** The texts in the head of a table, which label the cells below on a narrow screen. */
const labels = (table) => [...byId(table).tHead.rows[0].cells].map((head) => head.textContent);

function fillTable(table, rows) {
  byId(table).hidden = rows.length === 0;
  byId(table).tBodies[0].replaceChildren(...rows);
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const LINES = [
  ["--first", undefined],
  ["--second", [6, 4]],
  ["--third", [2, 3]],
];

function plot(chart, figure) {
  const axis = () => ({ stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 } });
  const lines = chart.names.map((label, i) => ({
    label,
    stroke: colour(LINES[i][0]),
    width: 2,
    dash: LINES[i][1],
    value: (_, value) => chart.text(value),
  }));
  const options = {
    width: Math.max(280, figure.clientWidth),
    height: CHART_HEIGHT,
    scales: { y: { range: (_, __, high) => [0, Math.max(chart.high, high * 1.1)] } },
    axes: [
      { ...axis(), space: 70, values: (_, ticks) => ticks.map(timeOfDay) },
      { ...axis(), size: 64, values: (_, ticks) => ticks.map(chart.axis) },
    ],
    series: [{ label: "at", value: (_, at) => (at ? timeOfDay(at) : UNKNOWN) }, ...lines],
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
    caption.append(element("span", chart.caption));
    chart.note = element("p", chart.empty, "empty");
    figure.append(caption, chart.note);
    byId("charts").append(figure);
    chart.figure = figure;
    chart.plot = plot(chart, figure);
  }
}

function drawCharts() {
  const isEmpty = shownSamples().length === 0;
  byId("no-charts").hidden = !isEmpty;
  byId("charts").hidden = isEmpty;
  byId("charts-window").textContent = "";
  if (isEmpty) return;
  const times = seconds();
  byId("charts-window").textContent = `the last ${ageText(times.length - 1)}, of at most ${ageText(known.window_s)}`;
  for (const chart of CHARTS) {
    const values = chart.values(times);
    const hasValues = values.some((series) => series.some(isNumber));
    chart.note.hidden = hasValues;
    chart.plot.root.hidden = !hasValues;
    chart.plot.setData([times, ...values]);
    // Without a pointer on the chart, the legend shows the latest values.
    if (!(chart.plot.cursor.left >= 0)) chart.plot.setLegend({ idx: times.length - 1 });
    const now = values.map((series, i) => `${chart.names[i]} ${chart.text(series[series.length - 1])}`);
    chart.figure.setAttribute("aria-label", `${chart.title}, ${chart.caption}. Now: ${now.join(", ")}.`);
  }
}

/** The values of the shown endpoint that the verdict and the tiles have in common. */
function figures() {
  const workers = shownWorkers();
  const ready = workers.filter((w) => w.status === "ready");
  const capacity_now = sum(ready, (w) => w.measured_perf);
  const arriving = shownPlan()?.load ?? 0;
  const live = workers.filter(isLive);
  const durations = shownEnded().filter(isTimed).map((e) => e.total_s).sort((a, b) => a - b);
  return {
    workers,
    ready,
    live,
    durations,
    arriving,
    capacity: capacity_now,
    queued_s: capacity_now > 0 ? sum(ready, (w) => w.cur_load) / capacity_now : null,
    utilisation: capacity_now > 0 ? (100 * arriving) / capacity_now : null,
  };
}

/** A class, and sentences that say what is happening and whether the capacity is enough. */
function verdict(now) {
  const { workers, ready } = now;
  if (!workers.length) return ["quiet", "No worker has reported to this endpoint."];
  const states = ["loading", "error", "stopped"]
    .map((state) => [workers.filter((w) => w.status === state).length, state])
    .filter(([count]) => count)
    .map(([count, state]) => `${count} ${state}`);
  const hope = workers.some((w) => w.status === "loading") ? "warn" : "bad";
  if (!ready.length) return [hope, `No worker is ready: ${states.join(", ")}.`];
  const others = states.length ? `, ${states.join(", ")}` : "";
  const load = now.arriving > 0 ? `${percent(now.utilisation)} of their capacity is asked for` : "no load arrives";
  const happening = `${counted(ready.length, "worker")} ready${others}; ${load}, and ${secondsText(now.queued_s)} of work is queued.`;
  const plan = shownPlan();
  const missing = plan ? plan.workers_ready_wanted - ready.length : 0;
  if (now.capacity === 0) return ["warn", `${happening} The capacity of the ready workers is not measured.`];
  if (now.utilisation > 100) return ["bad", `${happening} That is not enough: more arrives than is served.`];
  if (missing > 0) return ["warn", `${happening} The scaling plan wants ${counted(missing, "more worker")} for it.`];
  return ["good", `${happening} That is enough.`];
}

/** What is wrong now, as `[level, text]`: workers of all endpoints, and requests of the shown one. */
function problems(now) {
  const found = [];
  for (const worker of known.workers.values()) {
    const name = known.plans.length > 1 ? `Worker ${worker.id} of ${worker.endpoint}` : `Worker ${worker.id}`;
    const late_s = known.now - worker.reported_at;
    if (isWrong(worker)) {
      found.push(["bad", `${name}: ${worker.status} ${sinceText(worker.since)}: ${shortened(worker.why)}`]);
    } else if (isLive(worker) && late_s > LATE_S) {
      found.push(["warn", `${name}: its last report came ${ageText(late_s)} ago; it should report every 10 s`]);
    }
  }
  if (known.waiting_requests && !now.ready.length) {
    found.push(["bad", `${counted(known.waiting_requests, "request")} waiting: no worker is ready for them`]);
  }
  for (const [status, level] of [["Error", "bad"], ["Rejected", "warn"], ["Given up", "warn"]]) {
    const such = shownEnded().filter((e) => e.status === status);
    if (!such.length) continue;
    const last = such[such.length - 1];
    const count = `${counted(such.length, "request")} ${OUTCOMES[status]} in the last 10 min`;
    found.push([level, `${count}, the latest at ${timeOfDay(last.at)}: ${last.why}`]);
  }
  if (known.faults.length) found.push(["warn", `Faults are on, by POST /local/faults: ${known.faults.join(", ")}`]);
  return found;
}

function drawNow() {
  const now = figures();
  const [level, text] = verdict(now);
  byId("verdict").className = level;
  byId("verdict").textContent = text;
  byId("problems").replaceChildren(...problems(now).map(([kind, what]) => element("li", what, kind)));
  drawTiles(now);
}

function drawTiles(now) {
  const [p50, p95, p99] = [0.5, 0.95, 0.99].map((q) => secondsText(quantile(now.durations, q)));
  const times = Array.from({ length: SMOOTH_S }, (_, i) => Math.floor(known.now) - SMOOTH_S + i);
  const throughput = rate(times, shownSamples(), (s) => s.cur_perf).pop();
  const not_served = countOf("Error", "Rejected", "Given up");
  const tiles = [
    ["Workers ready", `${now.ready.length} of ${now.workers.length}`, `${shownPlan()?.workers_ready_wanted ?? 0} wanted by the plan`],
    ["Work queued", secondsText(now.queued_s), "work in flight ÷ capacity"],
    ["Utilisation", percent(now.utilisation), "load per second ÷ capacity"],
    ["Load arriving", perSecond(now.arriving), `workload, 15 s; served ${perSecond(throughput)}`],
    ["Capacity", now.ready.length ? perSecond(now.capacity) : UNKNOWN, "workload of the ready workers"],
    ["In flight", String(sum(now.live, (w) => w.reqs_working)), `requests; ${known.open_requests} open here, ${known.waiting_requests} wait for a worker`],
    ["Latency p50", p50, `p95 ${p95}, p99 ${p99}; 10 min`],
    ["Not served", String(not_served), `requests, of ${shownEnded().length} that ended in 10 min`],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value, more]) => {
      const tile = element("div");
      tile.append(element("dt", name), element("dd", value), element("dd", more, "more"));
      return tile;
    }),
  );
}

/** A bar with a worker's states over the time range of the charts. */
function stateHistory(worker, start) {
  const svg = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
  const made = svg("svg");
  made.setAttribute("class", "state-history");
  made.setAttribute("viewBox", `0 0 ${known.now - start} 10`);
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("shape-rendering", "crispEdges");
  made.setAttribute("role", "img");
  const spans = stateSpans(worker);
  for (const [state, from, to] of spans) {
    const rect = svg("rect");
    rect.setAttribute("class", state);
    rect.setAttribute("x", Math.max(0, from - start));
    rect.setAttribute("width", Math.max(0, to - Math.max(from, start)));
    rect.setAttribute("height", 10);
    made.append(rect);
  }
  const texts = spans.map(([state, from, to]) => `${state} for ${ageText(to - from)}`);
  made.setAttribute("aria-label", texts.join(", then "));
  return made;
}

function drawWorkers() {
  const workers = shownWorkers().sort((a, b) => a.id - b.id);
  const start = seconds()[0];
  const names = labels("workers");
  byId("no-workers").hidden = workers.length > 0;
  byId("legend").hidden = workers.length === 0;
  const rows = workers.map((worker) => {
    const live = isLive(worker);
    const row = element("tr", undefined, live ? "" : "dead");
    const name = element("th", `${worker.id} `);
    name.scope = "row";
    name.append(element("span", worker.url, "hint"));
    const label = worker.draining ? "draining" : worker.status;
    const state = [element("span", label, `state ${worker.status}`), element("span", sinceText(worker.since), "hint")];
    if (worker.why && worker.why !== label) state.push(element("span", worker.why, isWrong(worker) ? "why bad" : "why"));
    const measured = live && worker.measured_perf > 0;
    const numbers = [
      measured ? secondsText(worker.cur_load / worker.measured_perf) : UNKNOWN,
      measured ? percent((100 * worker.arrival_rate) / worker.measured_perf) : UNKNOWN,
      measured ? perSecond(worker.measured_perf) : UNKNOWN,
      live ? perSecond(served(worker)) : UNKNOWN,
      live ? String(worker.reqs_working) : UNKNOWN,
      String(worker.routed),
      `${ageText(known.now - worker.reported_at)} ago`,
    ];
    row.append(name, cell(names[1], state), cell(names[2], [stateHistory(worker, start)]));
    row.append(...numbers.map((text, i) => cell(names[i + 3], text, "number")));
    return row;
  });
  fillTable("workers", rows);
}

function drawPlans() {
  const names = labels("plans");
  const rows = known.plans.map((plan) => {
    const row = element("tr");
    const name = element("th", plan.endpoint);
    name.scope = "row";
    const numbers = [
      perSecond(plan.load),
      perSecond(plan.target_capacity),
      perSecond(plan.ready_capacity),
      perSecond(plan.cold_capacity),
      `${plan.workers_ready} / ${plan.workers_ready_wanted}`,
      `${plan.workers_cold} / ${plan.workers_cold_wanted}`,
      plan.autoscale ? `${plan.autoscale.running} / ${plan.autoscale.most}` : UNKNOWN,
    ];
    row.append(name, ...numbers.map((text, i) => cell(names[i + 1], text, "number")), cell(names[8], plan.reason));
    return row;
  });
  fillTable("plans", rows);
}

function drawRequests() {
  const names = labels("requests");
  const rows = shownEnded().slice(-MAX_REQUESTS).reverse().map((ended) => {
    const row = element("tr");
    const outcome = [element("span", OUTCOMES[ended.status], ended.status.replace(" ", "-"))];
    const answer = [ended.route, ended.http_status ?? ""].join(" ").trim();
    if (answer) outcome.push(element("span", answer, "answer"));
    if (ended.why) outcome.push(element("span", ended.why, "why"));
    const worker = ended.worker_id === null ? UNKNOWN : String(ended.worker_id);
    const tries = ended.times_routed > 1 ? `${worker} (routed ${ended.times_routed} times)` : worker;
    const durations = [ended.waited_s, ended.queue_s, ended.work_s, ended.total_s];
    row.append(
      cell(names[0], timeOfDay(ended.at)),
      cell(names[1], String(ended.request_idx)),
      cell(names[2], tries),
      cell(names[3], outcome),
      cell(names[4], numberText(ended.cost), "number"),
      ...durations.map((value, i) => cell(names[i + 5], secondsText(value), "number")),
    );
    return row;
  });
  fillTable("requests", rows);
  byId("no-requests").hidden = rows.length > 0;
  byId("requests-note").hidden = rows.length === 0;
}

function drawEvents() {
  const items = known.events.slice(-MAX_EVENTS).reverse().map((event) => {
    const item = element("li");
    const where = known.plans.length > 1 ? `${event.endpoint}: ` : "";
    item.append(element("time", timeOfDay(event.at)), element("span", where + event.text));
    return item;
  });
  byId("events").replaceChildren(...items);
  byId("no-events").hidden = items.length > 0;
}

/** The choice of the endpoint, where there are several, and the commands of the empty places. */
function drawChoice() {
  const names = known.plans.map((plan) => plan.endpoint);
  const choice = byId("endpoint");
  byId("endpoint-choice").hidden = names.length < 2;
  if (names.join("\n") !== [...choice.options].map((option) => option.value).join("\n")) {
    choice.replaceChildren(...names.map((name) => element("option", name)));
  }
  choice.value = shown;
  const path = shown === null || shown === names[0] ? "" : `/e/${encodeURIComponent(shown)}`;
  byId("api").href = shown === null ? "/docs" : `/e/${encodeURIComponent(shown)}/docs`;
  byId("report-addr").textContent = `REPORT_ADDR=${location.origin}${path}`;
  const payload = `'{"prompt": "Alice was", "max_response_tokens": 50}'`;
  byId("try-request").lastElementChild.textContent =
    `pyworker request --engine ${location.origin} -e ${shown} -k any /generate ${payload}`;
}

function draw() {
  drawChoice();
  drawNow();
  drawWorkers();
  drawCharts();
  drawRequests();
  drawEvents();
  drawPlans();
}

// Polling

let lost_at = null;

function showConnection(error) {
  const lost = error !== null;
  if (!lost) lost_at = null;
  else if (lost_at === null) lost_at = Date.now() / 1000;
  document.body.classList.toggle("lost", lost);
  byId("lost").hidden = !lost;
  byId("connection").textContent = lost ? "no connection" : `live, ${timeOfDay(known.now)}`;
  if (!lost) return;
  const age = ageText(Date.now() / 1000 - lost_at);
  const latest = known.now ? ` The latest data is of ${timeOfDay(known.now)}.` : "";
  byId("lost-title").textContent =
    `No connection to the engine since ${timeOfDay(lost_at)} (${age}): ${error.message}.${latest}`;
}

async function refresh() {
  try {
    const answer = await fetch(`/local/overview?since=${known.now}`);
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    let overview = await answer.json();
    if (known.now && overview.engine_id !== known.engine_id) {
      // Another engine, whose clock may differ: everything that it knows is new.
      overview = await (await fetch("/local/overview")).json();
    }
    merge(overview);
    showConnection(null);
  } catch (error) {
    showConnection(error);
    return;
  }
  draw();
}

async function run() {
  await refresh();
  setTimeout(run, POLL_MS);
}

makeCharts();
byId("endpoint").addEventListener("change", (event) => {
  [shown, is_chosen] = [event.target.value, true];
  draw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  makeCharts();
  drawCharts();
});
new ResizeObserver(() => {
  for (const chart of CHARTS) {
    chart.plot.setSize({ width: Math.max(280, chart.figure.clientWidth), height: CHART_HEIGHT });
  }
}).observe(byId("charts"));
run();
