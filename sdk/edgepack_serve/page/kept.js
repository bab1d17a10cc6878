// What outlives a reload: in this tab alone, and nothing at all on a screen that strangers share.

const PREFIX = "edgepack.";
const shared = new URLSearchParams(location.search).get("kiosk") === "1";
const here = new Map(); // for as long as the page is open

/** Keep a value under a name; null takes it away. Returns false where the tab has no room for it. */
export function keep(name, value) {
  here.set(name, value);
  if (shared) return true;
  try {
    if (value === null) sessionStorage.removeItem(PREFIX + name);
    else sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Return what was kept under a name, else null. */
export function kept(name) {
  if (here.has(name)) return here.get(name);
  if (shared) return null;
  try {
    return JSON.parse(sessionStorage.getItem(PREFIX + name));
  } catch {
    return null;
  }
}
