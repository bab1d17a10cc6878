// A screen that strangers share: nothing to set, nothing that leads away, and a new beginning when nobody is there.

import { announce } from "./announce.js";
import { byId } from "./dom.js";
import { words } from "./words.js";

const asked = new URLSearchParams(location.search);
const WARNING_S = 10;
const USED = ["pointerdown", "pointermove", "keydown", "input", "wheel", "touchstart"];

/** Whether this is such a screen. */
export const kiosk = asked.get("kiosk") === "1";

/** Seconds without use after which it begins anew: 60 unless `idle` says otherwise, 0 for never. */
const idle = (() => {
  const given = asked.get("idle");
  const seconds = /^\d{1,5}$/.test(given ?? "") ? Number(given) : 60;
  return seconds === 0 ? 0 : Math.max(5, seconds);
})();

/** Make the page such a screen. `reset()` begins anew, `busy()` says whether an answer is on its way. */
export function beKiosk({ reset, busy }) {
  document.documentElement.classList.add("kiosk");
  byId("brand").textContent = asked.get("title")?.slice(0, 80) || words.kioskTitle;
  byId("welcome-title").textContent = asked.get("title")?.slice(0, 80) || words.kioskTitle;
  byId("welcome-text").textContent = asked.get("welcome")?.slice(0, 400) || words.kioskWelcome;
  document.title = byId("brand").textContent;
  for (const each of ["tools", "model", "hint"]) byId(each).remove();
  byId("over").hidden = false;
  byId("over").addEventListener("click", reset);
  for (const event of ["contextmenu", "dragstart", "drop"]) document.addEventListener(event, (one) => one.preventDefault());
  if (idle) watch(reset, busy);
}

function watch(reset, busy) {
  const warning = Math.min(WARNING_S, idle / 2);
  const notice = byId("idle");
  let timer = 0;
  const used = () => {
    clearTimeout(timer);
    if (!notice.hidden) notice.hidden = true;
    timer = setTimeout(warn, (idle - warning) * 1000);
  };
  const warn = () => {
    if (busy()) return used();
    const fresh = byId("turns").childElementCount === 0 && byId("question").value === "";
    if (!fresh) {
      notice.hidden = false;
      announce(words.idle);
    }
    timer = setTimeout(end, warning * 1000);
  };
  const end = () => {
    if (!busy()) reset();
    used();
  };
  for (const event of USED) window.addEventListener(event, used, { passive: true });
  used();
}
