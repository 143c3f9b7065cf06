// The page works without this file; it refreshes what is shown, and brings the keys. No inline script, no eval.
"use strict";
(() => {
  const content = () => document.getElementById("content");
  const connection = document.getElementById("connection");
  const typing = (element) => element && (element.matches("input, textarea, select") || element.isContentEditable);
  let events = null;
  let paused = false;
  let away = false;

  const say = (text) => { if (connection && connection.textContent !== text) connection.textContent = text; };

  // A person who types, selects or has a dialog open is not interrupted.
  const busy = () =>
    paused || document.hidden || document.querySelector("dialog[open], [data-busy]") || (typing(document.activeElement) && content().contains(document.activeElement))
    || !document.getSelection().isCollapsed;

  const refresh = () => { if (!busy() && window.htmx && content().hasAttribute("hx-get")) window.htmx.trigger(content(), "live"); };

  const listen = () => {
    const address = document.body.dataset.events;
    if (events || document.hidden || !address || !content().hasAttribute("hx-get")) return;
    events = new EventSource(address);
    events.addEventListener("tick", () => { say(paused ? "paused" : "live"); refresh(); });
    events.addEventListener("open", () => { if (away) { away = false; refresh(); } say(paused ? "paused" : "live"); });
    events.addEventListener("error", () => { away = true; say("no connection to the page; it tries again"); });
  };
  const deaf = () => { if (events) { events.close(); events = null; } };
  document.addEventListener("visibilitychange", () => { if (document.hidden) deaf(); else { listen(); refresh(); } });
  window.addEventListener("pagehide", deaf);
  window.addEventListener("pageshow", listen);

  // What was unfolded, focused, marked and scrolled is so again after a refresh.
  let kept = null;
  const scrollers = () => [...content().querySelectorAll(".table, pre, .payload")];
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target !== content()) return;
    const focused = document.activeElement;
    kept = {
      open: [...content().querySelectorAll("details[id][open]")].map((each) => each.id),
      focus: focused && content().contains(focused) ? focused.id || (focused.getAttribute && focused.getAttribute("href")) : null,
      row: rows().findIndex((row) => row.classList.contains("marked")),
      scrolled: scrollers().map((each) => [each.scrollLeft, each.scrollTop]),
    };
  });
  document.addEventListener("htmx:afterSwap", () => {
    if (!kept) return;
    for (const id of kept.open) { const each = document.getElementById(id); if (each) each.open = true; }
    if (kept.focus) {
      const again = document.getElementById(kept.focus) || [...content().querySelectorAll("a[href]")].find((each) => each.getAttribute("href") === kept.focus);
      if (again) again.focus({ preventScroll: true });
    }
    if (kept.row >= 0) mark(kept.row, false);
    scrollers().forEach((each, place) => { if (kept.scrolled[place]) [each.scrollLeft, each.scrollTop] = kept.scrolled[place]; });
    kept = null;
  });
  document.addEventListener("htmx:sendError", () => say("no connection to the page; it tries again"));
  document.addEventListener("htmx:responseError", (event) => {
    const status = event.detail.xhr.status;
    say(status === 401 ? "you are logged out; load the page again" : `the page answered ${status}`);
  });

  const rows = () => [...content().querySelectorAll("tbody tr, [data-row]")].filter((row) => row.querySelector("a[href]"));
  const mark = (place, scroll = true) => {
    const all = rows();
    if (!all.length) return;
    const next = all[Math.max(0, Math.min(all.length - 1, place))];
    all.forEach((row) => row.classList.toggle("marked", row === next));
    if (scroll) { next.querySelector("a[href]").focus({ preventScroll: true }); next.scrollIntoView({ block: "nearest" }); }
  };
  const marked = () => rows().findIndex((row) => row.classList.contains("marked"));

  let going = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (typing(event.target)) { if (event.key === "Escape") event.target.blur(); return; }
    const dialog = document.getElementById("keys");
    if (dialog.open && event.key !== "?") return;
    if (going && /^[0-9]$/.test(event.key)) {
      going = false;
      const links = document.querySelectorAll("nav.main a");
      const link = links[(Number(event.key) + 9) % 10];
      if (link) link.click();
      return;
    }
    going = event.key === "g";
    if (event.key === "?") { if (dialog.open) dialog.close(); else dialog.showModal(); event.preventDefault(); }
    else if (event.key === "/") { const filter = document.querySelector("[data-filter]"); if (filter) { filter.focus(); event.preventDefault(); } }
    else if (event.key === "j") mark(marked() + 1);
    else if (event.key === "k") mark(marked() - 1);
    else if (event.key === "p") { paused = !paused; say(paused ? "paused" : "live"); refresh(); }
  });

  // on a narrow screen the navigation is wider than its window: the page that is open is in it
  const current = document.querySelector("nav.main [aria-current]");
  if (current) current.scrollIntoView({ block: "nearest", inline: "center" });
  listen();
})();
