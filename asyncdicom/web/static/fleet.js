// Keeps a page up to date: asks for what of it changes, and touches only what is different, so that focus, selection and scroll
// position stay. Without this script every page works too, and loads itself anew.
"use strict";

// Changes are told of by server-sent events; where none come, because a proxy holds them back, this asks by itself.
const PERIOD = 5000;
const QUIET = 30000;
const AFTER = 250;
// Updating takes at most this part of the time, however slow the machine and large the fleet.
const SHARE = 0.1;
const TYPING = 150;
const SLOTS = 60;
const freshness = document.getElementById("freshness");
const notice = document.getElementById("notice");
const tip = document.getElementById("tip");
const filters = document.getElementById("filters");
const operations = tip.dataset.operations.split(" ");
const reasons = tip.dataset.reasons.split("|").map((pair) => pair.split("="));
let asking = null;
let refreshed = Date.now();
let waiting = null;
let pause = AFTER;

const live = () => document.getElementById("live");

function say(wrong) {
  if (notice.textContent !== wrong) notice.textContent = wrong;
  freshness.hidden = wrong !== "";
}

async function refresh() {
  // Only the last question counts: what was asked for before is of another filter.
  asking?.abort();
  const mine = new AbortController();
  asking = mine;
  refreshed = Date.now();
  const patience = setTimeout(() => mine.abort(), PERIOD);
  try {
    const address = new URL(location.href);
    address.searchParams.set("fragment", "1");
    const response = await fetch(address, { headers: { accept: "text/html" }, signal: mine.signal });
    if (response.status === 401) throw new Error("the token is another one now: load this page again");
    if (response.status === 404) throw new Error("this modality has left the configuration");
    if (!response.ok) throw new Error(`the service answers HTTP ${response.status}: what you see is old`);
    const markup = await response.text();
    if (asking !== mine) return;
    const began = performance.now();
    apply(markup);
    pause = Math.max(AFTER, (performance.now() - began) / SHARE);
    say("");
    freshness.textContent = `updated ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    if (asking !== mine) return;
    const isKnown = error instanceof Error && error.name === "Error";
    say(isKnown ? error.message : "no answer from the service: what you see is old");
  } finally {
    clearTimeout(patience);
    if (asking === mine) asking = null;
  }
}

function apply(markup) {
  const fresh = new DOMParser().parseFromString(markup, "text/html").getElementById("live");
  if (!fresh) throw new Error("the service answers something else: load this page again");
  const focused = document.activeElement;
  morph(live(), fresh);
  document.title = live().dataset.title;
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  if (told) told.strip.isConnected ? tell(told.strip, told.back) : hush();
}

function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if ("keep" in old.dataset || old.isEqualNode(fresh)) return;
  const isOpened = (name) => name === "open" && old.nodeName === "DETAILS";
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && !isOpened(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  morphChildren(old, fresh);
}

function move(parent, child, before) {
  // The one keeps focus and selection, the other is what older browsers have.
  if (parent.moveBefore) parent.moveBefore(child, before);
  else parent.insertBefore(child, before);
}

function morphChildren(old, fresh) {
  const known = new Map();
  for (const child of old.children) if (child.dataset.key) known.set(child.dataset.key, child);
  let at = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const key = next.dataset?.key;
    const same = key ? known.get(key) : at && !at.dataset?.key && at.nodeName === next.nodeName ? at : null;
    if (!same) {
      old.insertBefore(next, at);
      continue;
    }
    if (same !== at && at?.nextSibling === same) {
      // One that goes down the list is moved alone, and not all those that it passes.
      const passed = at;
      at = same;
      move(old, passed, null);
    }
    if (same === at) at = at.nextSibling;
    else move(old, same, at);
    morph(same, next);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

// -- when to ask ---------------------------------------------------------------------------------------------------

function soon() {
  if (document.hidden || waiting) return;
  waiting = setTimeout(() => {
    waiting = null;
    if (asking) soon();
    else refresh();
  }, pause);
}

const events = new EventSource("/api/events?brief=1");
events.addEventListener("open", soon);
events.addEventListener("changed", (event) => {
  const changed = JSON.parse(event.data);
  const { modality, storage } = live().dataset;
  if (modality !== undefined ? changed.modalities.includes(modality) : storage === undefined || changed.storage) soon();
});
setInterval(() => {
  const patience = events.readyState === EventSource.OPEN ? QUIET : 0;
  if (!document.hidden && Date.now() - refreshed >= patience) refresh();
}, PERIOD);
document.addEventListener("visibilitychange", () => document.hidden || refresh());

// -- filters -------------------------------------------------------------------------------------------------------

function go(address, isStep) {
  if (isStep) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  refresh();
}

function fill() {
  const query = new URLSearchParams(location.search);
  for (const field of filters.elements) {
    if (field.type === "checkbox") field.checked = query.get(field.name) === field.value;
    else if (field.name) field.value = query.get(field.name) ?? "";
  }
}

if (filters) {
  document.documentElement.classList.add("scripted");
  let typing = null;
  const show = (isStep) => {
    clearTimeout(typing);
    const query = String(new URLSearchParams([...new FormData(filters)].filter(([, value]) => value)));
    go(query ? `/?${query}` : "/", isStep);
  };
  filters.addEventListener("submit", (event) => {
    event.preventDefault();
    show(false);
  });
  filters.addEventListener("input", (event) => {
    clearTimeout(typing);
    if (event.target.type === "search") typing = setTimeout(() => show(false), TYPING);
    else show(true);
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest(".tiles a, .pager a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(link.href, true);
    fill();
    if (link.rel) scrollTo(0, 0);
  });
  addEventListener("popstate", () => {
    fill();
    refresh();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input, select, textarea")) return;
    event.preventDefault();
    filters.elements.q.select();
  });
}

// -- what and when each outcome of a strip was ------------------------------------------------------------------------

let told = null;

function samplesOf(strip) {
  const [first, ...rest] = strip.dataset.samples.split(" ");
  let at = parseInt(first, 16);
  return rest.map((packed) => {
    const [gap, took] = packed.slice(2).split(".");
    at += parseInt(gap, 16);
    return { at, operation: operations[packed[0]], reason: reasons[parseInt(packed[1], 36)][1], took: parseInt(took, 16) / 10 };
  });
}

function span(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 86400 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
}

function tell(strip, back) {
  const samples = samplesOf(strip);
  const sample = samples[samples.length - 1 - back];
  if (!sample) return hush();
  const ago = Math.max(0, Math.round(Date.now() / 1000 - sample.at));
  const took = sample.took < 100 ? sample.took.toFixed(1) : Math.round(sample.took);
  const words = `${sample.reason} · ${sample.operation} · ${took} ms\n${new Date(sample.at * 1000).toLocaleString()} · ${span(ago)} ago`;
  if (tip.textContent !== words) tip.textContent = words;
  tip.hidden = false;
  const place = strip.getBoundingClientRect();
  const middle = place.left + (place.width * (SLOTS - back - 0.5)) / SLOTS;
  tip.style.left = `${Math.max(8, Math.min(innerWidth - tip.offsetWidth - 8, middle - tip.offsetWidth / 2))}px`;
  tip.style.top = `${place.top > tip.offsetHeight + 12 ? place.top - tip.offsetHeight - 6 : place.bottom + 6}px`;
  told = { strip, back };
}

function hush() {
  tip.hidden = true;
  told = null;
}

function point(event) {
  const strip = event.target.closest?.("[data-samples]");
  if (!strip) {
    if (told && told.strip !== document.activeElement) hush();
    return;
  }
  const place = strip.getBoundingClientRect();
  tell(strip, SLOTS - 1 - Math.min(SLOTS - 1, Math.max(0, Math.floor(((event.clientX - place.left) / place.width) * SLOTS))));
}

document.addEventListener("pointermove", point, { passive: true });
document.addEventListener("pointerdown", point, { passive: true });
document.addEventListener("focusin", (event) => event.target.matches("[data-samples]:focus-visible") && tell(event.target, 0));
document.addEventListener("focusout", hush);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return hush();
  if (!event.target.matches("[data-samples]")) return;
  const last = samplesOf(event.target).length - 1;
  const back = told?.strip === event.target ? told.back : 0;
  const next = { ArrowLeft: back + 1, ArrowRight: back - 1, Home: last, End: 0 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  tell(event.target, Math.max(0, Math.min(last, next)));
});
addEventListener("scroll", () => told && hush(), { passive: true });

// -- echo now ------------------------------------------------------------------------------------------------------

document.addEventListener("submit", async (event) => {
  if (event.target.id !== "echo") return;
  event.preventDefault();
  const button = event.target.querySelector("button");
  const shown = document.getElementById("echoed");
  button.disabled = true;
  button.textContent = "Asking…";
  let words;
  let isUp = false;
  try {
    const response = await fetch(event.target.action, { method: "POST" });
    const answer = await response.json();
    const next = answer.remedy ? ` Next: ${answer.remedy}.` : "";
    if (response.ok) {
      isUp = answer.ok;
      const [, reason] = reasons.find(([name]) => name === answer.reason);
      words = `${reason}, after ${answer.duration_ms.toFixed(answer.duration_ms < 1 ? 2 : 1)} ms.${answer.ok || !answer.detail ? "" : ` ${answer.detail}.`}${next}`;
    } else {
      words = response.status === 401 ? "The token is another one now: load this page again." : `Not asked: ${answer.error}.${next}`;
    }
  } catch {
    words = "No answer from the service.";
  }
  shown.hidden = false;
  shown.classList.toggle("up", isUp);
  shown.classList.toggle("down", !isUp);
  shown.textContent = `Echo at ${new Date().toLocaleTimeString()}: ${words}`;
  button.disabled = false;
  button.textContent = "Echo now";
  refresh();
});
