// What the engine's pages have in common: making elements, and texts for values. All files are served by the engine.
"use strict";

const byId = (id) => document.getElementById(id);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Texts

const UNKNOWN = "–";
const MAX_SHORT_CHARS = 160;
const compact = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium", hourCycle: "h23" });
const isNumber = (value) => value !== null && value !== undefined && Number.isFinite(value);

const timeOfDay = (at) => clock.format(at * 1000);
const numberText = (value) => (isNumber(value) ? compact.format(value) : UNKNOWN);
const perSecond = (value) => (isNumber(value) ? `${compact.format(value)}/s` : UNKNOWN);
const percent = (value) => (isNumber(value) ? `${Math.round(value)} %` : UNKNOWN);

/** A duration that was measured, such as "0.25 s" or "3 min 20 s". */
function secondsText(value) {
  if (!isNumber(value)) return UNKNOWN;
  if (value < 9.995) return `${value.toFixed(2)} s`;
  return value < 99.95 ? `${value.toFixed(1)} s` : ageText(value);
}

/** A time that has passed, such as "12 s", "3 min 20 s" or "2 h 5 min". */
function ageText(value) {
  const whole = Math.max(0, Math.round(value));
  const parts = [
    [Math.floor(whole / 3600), "h"],
    [Math.floor((whole % 3600) / 60), "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  if (first < 0) return "0 s";
  const two = parts.slice(first, first + 2).filter(([count]) => count > 0);
  return two.map(([count, unit]) => `${count} ${unit}`).join(" ");
}

const shortened = (text) => (text.length > MAX_SHORT_CHARS ? `${text.slice(0, MAX_SHORT_CHARS)}…` : text);
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
