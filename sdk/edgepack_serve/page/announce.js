// What is read out: one polite line, said when something is finished and never while it grows.

import { byId } from "./dom.js";
import { spoken } from "./spoken.js";
import { words } from "./words.js";

const LONGEST = 4000;

/** Have a screen reader say a text when it next pauses. */
export function announce(text) {
  byId("said").textContent = text;
}

/** Have it say the beginning of an answer, which is all of most. */
export function announceAnswer(text) {
  const said = spoken(text.slice(0, LONGEST));
  announce(text.length > LONGEST ? `${said}… ${words.goesOn}` : said);
}
