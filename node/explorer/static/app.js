// What the pages gain with JavaScript: copy buttons, the "/" key, times that move on, and live
// sections. The server's HTML is the only source: when something happened, the page is fetched
// again and the sections marked `data-live` that differ are put in place.

const html = document.documentElement;
html.classList.add("js");

// --- copy ---------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  button.classList.add("done");
  button.title = "copied";
  setTimeout(() => {
    button.classList.remove("done");
    button.title = "copy";
  }, 1500);
});

// --- search -------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  const typing = /^(input|textarea|select)$/i.test(document.activeElement?.tagName ?? "");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const box = document.querySelector("#search");
  if (!box) return;
  event.preventDefault();
  box.focus();
  box.select();
});

// --- times --------------------------------------------------------------------------

function ago(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 2) return "just now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

function tick() {
  for (const time of document.querySelectorAll("time[data-ms]")) {
    const text = ago(Date.now() - Number(time.dataset.ms));
    if (time.textContent !== text) time.textContent = text;
  }
}
setInterval(tick, 1000);
tick();

// --- live sections ------------------------------------------------------------------

const PAUSE_MS = 700; // between two refreshes, however many events come

function busy(section) {
  const selection = document.getSelection();
  const selected = selection && !selection.isCollapsed && section.contains(selection.anchorNode);
  return selected || section.contains(document.activeElement);
}

function put(fresh) {
  for (const before of document.querySelectorAll("[data-live]")) {
    const now = fresh.getElementById(before.id);
    if (!now || before.outerHTML === now.outerHTML || busy(before)) continue;
    const known = new Set([...before.querySelectorAll("[data-key]")].map((e) => e.dataset.key));
    const after = document.adoptNode(now);
    if (known.size) {
      for (const item of after.querySelectorAll("[data-key]")) {
        if (!known.has(item.dataset.key)) item.classList.add("fresh");
      }
    }
    const scrolled = before.querySelector(".scroll")?.scrollLeft ?? 0;
    before.replaceWith(after);
    const scroller = after.querySelector(".scroll");
    if (scroller) scroller.scrollLeft = scrolled;
  }
  tick();
}

let wanted = false;
let running = false;

async function refresh() {
  if (!document.querySelector("[data-live]")) return;
  wanted = true;
  if (running || document.hidden) return;
  running = true;
  while (wanted && !document.hidden) {
    wanted = false;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.ok) put(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      lamp(false);
    }
    await new Promise((done) => setTimeout(done, PAUSE_MS));
  }
  running = false;
}

function lamp(on) {
  const light = document.querySelector("#lamp");
  html.classList.toggle("live", on);
  light?.classList.toggle("on", on);
  light?.classList.toggle("off", !on);
  if (light) light.title = on ? "live" : "the node does not answer; trying again";
}

function follow() {
  const source = new EventSource("/api/v1/events");
  source.addEventListener("open", () => lamp(true));
  source.addEventListener("error", () => lamp(false));
  let first = true;
  source.addEventListener("block", (event) => {
    const { height } = JSON.parse(event.data);
    for (const place of document.querySelectorAll("[data-height]")) {
      const text = height.toLocaleString("en");
      if (place.textContent !== text) place.textContent = text;
    }
    if (!first || Number(html.dataset.shown) !== height) refresh();
    first = false;
  });
  for (const name of ["phase", "round", "peers"]) source.addEventListener(name, refresh);
  addEventListener("pagehide", () => source.close());
}

follow();
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && wanted) refresh();
});
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
