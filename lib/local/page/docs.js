// Sends what the forms of the page of an API have, by POST /local/try, and shows the answers.
"use strict";

const NEWLINE = 10;
// More text than this is offered as a download only.
const MAX_SHOWN_CHARS = 1_000_000;
// An answer that is nested deeper is shown as it came.
const MAX_INDENTED_LEVELS = 100;
// Other answers that are no text are offered as a download. A picture or a sound can't run anything.
const MEDIA = new Map([["image", "img"], ["audio", "audio"], ["video", "video"]]);
// What is read without opening the list of all headers.
const OF_INTEREST = ["content-type", "content-length", "retry-after", "x-request-id", "location", "allow"];

const endpoint = document.body.dataset.endpoint;
const counts = new Intl.NumberFormat("en");

/** What a person gave that can't be sent; `input` has it. */
class WrongInput extends Error {
  constructor(input, message) {
    super(message);
    this.input = input;
  }
}

/** An answer of a worker's that ended before it was whole. */
class BrokenOff extends Error {}

// The request. JSON that a person writes stays a text: parsed here, its numbers would change.

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** The JSON text of an object whose values are `textOf` what the inputs have. */
function objectOf(form, where, textOf) {
  const given = [...form.querySelectorAll(`[data-in="${where}"]`)].filter((input) => input.value !== "");
  return `{${given.map((input) => `${JSON.stringify(input.dataset.name)}:${textOf(input.value)}`).join(",")}}`;
}

const asText = (value) => JSON.stringify(value);
/** A list in JSON becomes repeated parameters of the query; other values are texts. */
const asTextOrList = (value) => (value.startsWith("[") && isJson(value) ? value : JSON.stringify(value));

/** The JSON text of the payload. */
function payloadIn(form) {
  const area = form.querySelector("textarea");
  if (!area) return objectOf(form, "query", asTextOrList);
  const text = area.value.trim() || "{}";
  let payload;
  try {
    payload = JSON.parse(text);
  } catch (error) {
    throw new WrongInput(area, `The payload is not JSON: ${error.message}`);
  }
  if (payload === null || typeof payload !== "object" || Array.isArray(payload)) {
    throw new WrongInput(area, "The payload is not a JSON object: begin it with { and end it with }");
  }
  return text;
}

/** The content of a file in base64. */
function contentOf(input, file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new WrongInput(input, `${file.name} can't be read: ${reader.error.message}`));
    reader.readAsDataURL(file);
  });
}

async function filesIn(form) {
  const files = [];
  for (const row of form.querySelectorAll(".file")) {
    const input = row.querySelector(".file-content");
    const [file] = input.files;
    if (!file) continue;
    const content = await contentOf(input, file);
    const field = row.querySelector(".file-field").value;
    files.push({ field, name: file.name, type: file.type, base64: file.size ? content : "" });
  }
  return files;
}

async function messageOf(form) {
  const payload = payloadIn(form);
  const others = JSON.stringify({
    endpoint,
    api_key: byId("api-key")?.value ?? "any",
    method: form.dataset.method,
    path: form.dataset.path,
    files: await filesIn(form),
    cost: Number(form.querySelector(".cost").value),
  });
  return `${others.slice(0, -1)},"path_values":${objectOf(form, "path", asText)},"payload":${payload}}`;
}

// The answer

/** An answer of /local/try: a line of JSON about the worker's answer, then the parts of that as they arrive. */
class AnswerReader {
  constructor(response) {
    this.reader = response.body.getReader();
    this.rest = new Uint8Array();
  }

  async head() {
    return JSON.parse(await this.line());
  }

  /** The next part of the body; undefined at its end. */
  async next() {
    const length = Number(await this.line());
    if (length) {
      while (this.rest.length < length) await this.more();
      return this.taken(length);
    }
    const { error } = JSON.parse(await this.line());
    if (error) throw new BrokenOff(`${error}. See the worker's log.`);
    return undefined;
  }

  async line() {
    let end;
    while ((end = this.rest.indexOf(NEWLINE)) < 0) await this.more();
    return new TextDecoder().decode(this.taken(end + 1));
  }

  async more() {
    const { done, value } = await this.reader.read();
    if (done) throw new Error("The engine's answer ended early");
    this.rest = joined([this.rest, value]);
  }

  taken(length) {
    const part = this.rest.subarray(0, length);
    this.rest = this.rest.subarray(length);
    return part;
  }
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

const headerOf = (head, name) => head.headers.find(([each]) => each.toLowerCase() === name)?.[1] ?? "";
const mediaTypeOf = (head) => headerOf(head, "content-type").split(";")[0].trim().toLowerCase();
const isText = (type) => /^text\/|[/+](json|xml|javascript)$|[/-](x-ndjson|jsonl|yaml)$|^$/.test(type);
const sizeText = (bytes) => `${counts.format(bytes)} ${bytes === 1 ? "byte" : "bytes"}`;

function decoderOf(head) {
  const [, charset] = headerOf(head, "content-type").match(/;\s*charset="?([^\s;"]+)/i) ?? [];
  try {
    return new TextDecoder(charset);
  } catch {
    return new TextDecoder(); // this browser doesn't know the charset
  }
}

/** `text` with line breaks and indents if it is JSON. Its numbers and the order of its fields stay as they came. */
function indented(text) {
  if (!isJson(text)) return text;
  const lines = [];
  const close = { "{": "}", "[": "]" };
  let [line, level, size] = ["", 0, 0];
  const endLine = () => {
    lines.push(line);
    size += line.length;
    line = "  ".repeat(level);
  };
  const tokens = text.match(/"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+/g);
  for (let at = 0; at < tokens.length; at += 1) {
    const token = tokens[at];
    if (token in close && tokens[at + 1] === close[token]) {
      line += token + tokens[(at += 1)];
    } else if (token in close) {
      line += token;
      level += 1;
      endLine();
    } else if (token === "}" || token === "]") {
      level -= 1;
      endLine();
      line += token;
    } else if (token === ",") {
      line += token;
      endLine();
    } else {
      // A text may have escapes for what can be read.
      line += token === ":" ? ": " : token.startsWith('"') ? JSON.stringify(JSON.parse(token)) : token;
    }
    if (level > MAX_INDENTED_LEVELS || size > 4 * MAX_SHOWN_CHARS) return text;
  }
  return [...lines, line].join("\n");
}

/** Shows one answer in its place below a form. */
class AnswerView {
  constructor(place) {
    this.place = place;
    this.started = performance.now();
    this.received = 0;
    this.parts = [];
    for (const old of place.querySelectorAll("[data-blob]")) URL.revokeObjectURL(old.dataset.blob);
    this.result = element("p", "Waiting for the answer…", "result");
    this.about = element("p", "", "hint");
    place.className = "answer";
    place.replaceChildren(this.result, this.about);
    place.hidden = false;
  }

  get seconds() {
    return secondsText((performance.now() - this.started) / 1000);
  }

  begin(head) {
    this.head = head;
    this.type = mediaTypeOf(head);
    this.place.className = `answer ${head.status < 400 ? "good" : head.status < 500 ? "warn" : "bad"}`;
    this.status = `${head.status} ${head.reason}`.trim();
    this.first = this.seconds;
    this.result.textContent = `${this.status}, the answer comes…`;
    const chosen = head.headers.filter(([name]) => OF_INTEREST.includes(name.toLowerCase()));
    const shown = element("p", chosen.map(([name, value]) => `${name}: ${value}`).join("\n"), "hint headers");
    const all = element("details");
    const list = element("pre", head.headers.map(([name, value]) => `${name}: ${value}`).join("\n"));
    all.append(element("summary", "All headers"), list);
    this.body = element("div");
    this.place.append(this.body, shown, all);
    if (isText(this.type)) {
      this.text = "";
      this.decoder = decoderOf(head);
      this.shownText = element("pre", "");
      this.body.append(this.shownText);
    }
  }

  add(part) {
    this.received += part.length;
    this.parts.push(part);
    if (this.decoder) this.addText(this.decoder.decode(part, { stream: true }));
    this.about.textContent = `${sizeText(this.received)} so far, ${this.seconds}`;
  }

  addText(text) {
    const before = this.text.length;
    this.text += text;
    if (before < MAX_SHOWN_CHARS) this.shownText.append(text.slice(0, MAX_SHOWN_CHARS - before));
  }

  finish() {
    const from = `${this.head.method} ${this.head.url}`;
    this.result.textContent = `${this.status} in ${this.seconds}`;
    this.about.textContent = `${from}: the answer began after ${this.first} and has ${sizeText(this.received)}. `;
    if (byId("envelope")) {
      const link = element("a", "Its envelope");
      link.href = "#envelope";
      this.about.append(link);
    }
    this.complete();
  }

  /** Show what has arrived, whole or not. */
  complete() {
    if (this.text !== undefined) {
      this.addText(this.decoder.decode());
      if (this.text.length <= MAX_SHOWN_CHARS) this.shownText.textContent = indented(this.text);
      else this.body.prepend(element("p", `The first ${counts.format(MAX_SHOWN_CHARS)} characters:`, "hint"));
      if (!this.text) this.shownText.replaceWith(element("p", "The body is empty.", "hint"));
      else if (this.text.length > MAX_SHOWN_CHARS) this.offer();
      return;
    }
    if (this.received) this.offer(MEDIA.get(this.type.split("/")[0]));
    else this.body.append(element("p", "The body is empty.", "hint"));
  }

  /** Offer the body as a download and, with the name of an element for media, show it. */
  offer(media) {
    const url = URL.createObjectURL(new Blob(this.parts, { type: media ? this.type : "application/octet-stream" }));
    if (media) {
      const shown = element(media);
      shown.src = url;
      if (media === "img") shown.alt = "the answer";
      else shown.controls = true;
      shown.addEventListener("error", () => shown.replaceWith(element("p", "This browser can't show it.", "hint")));
      this.body.append(shown);
    }
    const link = element("a", `Download (${sizeText(this.received)}, ${this.type || "no media type"})`);
    link.href = link.dataset.blob = url;
    link.download = "answer";
    this.body.append(link);
  }

  /** Say why there is no answer, or no more of it. */
  fail(title, why, level) {
    this.place.className = `answer ${level}`;
    this.result.textContent = title;
    this.about.textContent = why;
    if (this.head) this.complete();
  }
}

function showEnvelope(head) {
  if (!byId("envelope")) return;
  const where = head.in_header ? "Its header X-Vast-Auth has, in base64url:" : "Its body was:";
  byId("envelope-note").textContent = `The last request, at ${timeOfDay(Date.now() / 1000)}: ${head.method} ${head.url}. ${where}`;
  byId("envelope-sent").textContent = indented(head.sent);
  byId("envelope-sent").hidden = false;
}

async function errorOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error ?? text;
  } catch {
    return text;
  }
}

async function exchange(body, view, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await fetch("/local/try", { method: "POST", headers, body, signal });
  if (!response.ok) {
    view.fail(`Not answered: ${await errorOf(response)}`, `The engine answered ${response.status} after ${view.seconds}.`, "bad");
    return;
  }
  const reader = new AnswerReader(response);
  const head = await reader.head();
  showEnvelope(head);
  view.begin(head);
  for (let part = await reader.next(); part; part = await reader.next()) view.add(part);
  view.finish();
}

async function send(form) {
  const [submit, stop] = [form.querySelector("[type=submit]"), form.querySelector(".stop")];
  const view = new AnswerView(form.nextElementSibling);
  const control = new AbortController();
  const cancel = () => control.abort();
  submit.disabled = true;
  stop.hidden = false;
  stop.addEventListener("click", cancel);
  try {
    await exchange(await messageOf(form), view, control.signal);
  } catch (error) {
    const came = view.head ? `${view.status}; ${sizeText(view.received)} had arrived.` : "No answer had begun.";
    if (error instanceof WrongInput) {
      view.fail(error.message, "Nothing was sent.", "warn");
      error.input.focus();
    } else if (control.signal.aborted) {
      view.fail(`Stopped after ${view.seconds}`, `${came} The connection to the worker is closed, as if a client had left.`, "warn");
    } else if (error instanceof BrokenOff) {
      view.fail(`The answer broke off after ${view.seconds}`, `${came} The reason: ${error.message}`, "bad");
    } else if (view.head) {
      view.fail(`The connection to the engine broke off after ${view.seconds}`, `${came} ${error.message}.`, "bad");
    } else {
      view.fail("No connection to the engine", `${error.message}. Is the engine still running?`, "bad");
    }
  } finally {
    stop.removeEventListener("click", cancel);
    stop.hidden = true;
    submit.disabled = false;
  }
}

for (const form of document.querySelectorAll("form.try")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
  });
  form.querySelector(".more-files")?.addEventListener("click", (event) => {
    const row = form.querySelector(".file").cloneNode(true);
    const input = row.querySelector(".file-content");
    input.value = "";
    input.required = false;
    event.target.before(row);
  });
}
byId("endpoint").addEventListener("change", (event) => {
  location.assign(`/e/${encodeURIComponent(event.target.value)}/docs`);
});
