// Fetches what changes every few seconds and replaces it only when it is different, so that nothing flickers.
"use strict";

// Changes are told of by server-sent events; where none come, because a proxy holds them back, this asks by itself.
const PERIOD = 5000;
const QUIET = 30000;
const AFTER = 250;
const freshness = document.getElementById("freshness");
let running = null;
let refreshed = Date.now();
let waiting = null;

function fragmentAddress() {
  const address = new URL(location.href);
  address.searchParams.set("fragment", "1");
  return address;
}

async function refresh() {
  if (running) return running;
  refreshed = Date.now();
  running = (async () => {
    try {
      const response = await fetch(fragmentAddress(), { headers: { accept: "text/html" }, signal: AbortSignal.timeout(PERIOD) });
      if (!response.ok) throw new Error(`HTTP ${response.status}`);
      replace(await response.text());
      freshness.textContent = `updated ${new Date().toLocaleTimeString()}`;
      freshness.className = "freshness live";
    } catch (error) {
      freshness.textContent = "no answer from the service: what you see is old";
      freshness.className = "freshness stale";
    } finally {
      running = null;
    }
  })();
  return running;
}

function replace(markup) {
  const parsed = new DOMParser().parseFromString(markup, "text/html").getElementById("live");
  const shown = document.getElementById("live");
  if (!parsed || parsed.innerHTML === shown.innerHTML) return;
  const focused = shown.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  shown.replaceChildren(...parsed.childNodes);
  document.title = parsed.dataset.title;
  if (focused) shown.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-echo]");
  if (!button) return;
  button.disabled = true;
  button.textContent = "Asking…";
  try {
    const response = await fetch(button.dataset.echo, { method: "POST" });
    if (!response.ok) throw new Error((await response.json()).error ?? `HTTP ${response.status}`);
    await refresh();
  } catch (error) {
    freshness.textContent = error.message;
    freshness.className = "freshness stale";
  }
  const again = document.querySelector("[data-echo]");
  again.disabled = false;
  again.textContent = "Ask now";
});

document.getElementById("filters")?.addEventListener("change", (event) => {
  if (event.target.tagName === "SELECT") event.currentTarget.submit();
});

function soon() {
  if (document.hidden || waiting) return;
  waiting = setTimeout(() => {
    waiting = null;
    refresh();
  }, AFTER);
}

const events = new EventSource("/api/events");
for (const kind of ["modality", "gone", "storage"]) events.addEventListener(kind, soon);

setInterval(() => {
  const patience = events.readyState === EventSource.OPEN ? QUIET : 0;
  if (!document.hidden && Date.now() - refreshed >= patience) refresh();
}, PERIOD);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
