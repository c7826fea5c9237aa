// The data that page.js draws: what GET /local/overview has answered, and series of it over time.
"use strict";

// Rates are averaged over this many seconds.
const SMOOTH_S = 5;
// Latencies are of the requests that ended within this many seconds.
const LATENCY_S = 30;
// A worker without a report for this long is stopped; the same as SILENCE_S in lib/local/fleet.py.
const SILENCE_S = 30;
// What a worker serves is averaged over this many seconds: enough for some requests that take seconds.
const SERVED_S = 60;
const MAX_EVENTS = 30;

const known = {
  engine_id: null,
  now: 0,
  window_s: 600,
  open_requests: 0,
  waiting_requests: 0,
  faults: [],
  plans: [],
  workers: new Map(),
  ended: [],
  events: [],
};
// The endpoint that the page shows, null until the first answer, and whether a person has chosen it.
let shown = null;
let is_chosen = false;

/** Add an answer of /local/overview to `known`, and drop what is older than the charts. */
function merge(overview) {
  const restarted = known.engine_id !== overview.engine_id;
  const oldest = overview.now - overview.window_s;
  const before = restarted ? { workers: new Map(), ended: [], events: [] } : { ...known };
  Object.assign(known, overview);
  known.workers = new Map();
  for (const worker of overview.workers) {
    const samples = [...(before.workers.get(worker.id)?.samples ?? []), ...worker.samples];
    known.workers.set(worker.id, { ...worker, samples: samples.filter((s) => s.at > oldest) });
  }
  known.ended = [...before.ended, ...overview.ended].filter((e) => e.at > oldest);
  known.events = [...before.events, ...overview.events].filter((e) => e.at > oldest);
  const names = known.plans.map((plan) => plan.endpoint);
  if (!names.includes(shown)) [shown, is_chosen] = [null, false];
  if (!is_chosen && !shownWorkers().length) shown = overview.workers[0]?.endpoint ?? names[0] ?? null;
}

const shownWorkers = () => [...known.workers.values()].filter((w) => w.endpoint === shown);
const shownEnded = () => known.ended.filter((e) => e.endpoint === shown);
const shownPlan = () => known.plans.find((plan) => plan.endpoint === shown);
/** Whether a worker is in a state that nobody asked for. */
const isWrong = (worker) => worker.status === "error" || (worker.status === "stopped" && !worker.as_intended);
const isLive = (worker) => worker.status !== "stopped" || worker.draining;
const sum = (list, value) => list.reduce((total, item) => total + value(item), 0);

// Time series with one value per second

function seconds() {
  const end = Math.floor(known.now);
  const firsts = shownWorkers().map((w) => (w.samples.length ? Math.floor(w.samples[0].at) : end));
  const start = Math.max(Math.min(end - 60, ...firsts), end - known.window_s);
  return Array.from({ length: end - start + 1 }, (_, i) => start + i);
}

/** The sum over the workers of `value(latest report)` at each time; workers that are gone don't count. */
function sumOfLatest(times, value) {
  const sums = times.map(() => 0);
  for (const worker of shownWorkers()) {
    const { samples } = worker;
    const gone_at = isLive(worker) ? Infinity : worker.since;
    let next = 0;
    times.forEach((time, i) => {
      while (next < samples.length && samples[next].at <= time + 1) next += 1;
      const last = samples[next - 1];
      if (last && time - last.at < SILENCE_S && time < gone_at) sums[i] += value(last);
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

const isTimed = (ended) => ended.total_s !== null && ended.status !== "Rejected" && ended.status !== "Cancelled";

function quantile(sorted, q) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : null;
}

/** For each of `qs`, that quantile of the total time of the requests of the last LATENCY_S seconds, at each time. */
function latencies(times, qs) {
  const slots = times.map(() => []);
  for (const ended of shownEnded().filter(isTimed)) {
    const from = Math.floor(ended.at) - times[0];
    for (let i = Math.max(0, from); i < Math.min(times.length, from + LATENCY_S); i += 1) slots[i].push(ended.total_s);
  }
  for (const slot of slots) slot.sort((a, b) => a - b);
  return qs.map((q) => slots.map((slot) => quantile(slot, q)));
}

const shownSamples = () => shownWorkers().flatMap((w) => w.samples);
const arrived = (sample) => sample.new_load + sample.rej_load;

/** The capacity of the ready workers, in workload per second, at each time. */
const capacity = (times) => sumOfLatest(times, (s) => (s.state === "ready" ? s.max_perf : 0));

/** `amounts` divided by `wholes`, times `factor`; null where there is nothing to divide by. */
const shares = (amounts, wholes, factor) => amounts.map((a, i) => (wholes[i] > 0 ? (factor * a) / wholes[i] : null));

/** The workload per second that a worker has served in the last SERVED_S seconds: its capacity, if it is busy. */
function served(worker) {
  return sum(worker.samples.filter((s) => s.at > known.now - SERVED_S), (s) => s.cur_perf) / SERVED_S;
}

/** A worker's states as spans `[state, from, to]`, times in Unix seconds; equal neighbours are joined. */
function stateSpans(worker) {
  const spans = [];
  const add = (state, from, to) => {
    const last = spans[spans.length - 1];
    if (last && last[0] === state) last[2] = to;
    else if (to > from) spans.push([state, from, to]);
  };
  const gone_at = worker.status === "stopped" ? worker.since : Infinity;
  worker.samples.forEach((sample, i) => {
    const end = worker.samples[i + 1]?.at ?? known.now;
    const latest = i === worker.samples.length - 1;
    const alive = Math.min(end, sample.at + SILENCE_S, latest ? Math.max(sample.at, gone_at) : Infinity);
    add(sample.state, sample.at, alive);
    if (end > alive) add("stopped", alive, end);
  });
  return spans;
}

// Texts

const sinceText = (at) => `since ${timeOfDay(at)} (${ageText(known.now - at)})`;
