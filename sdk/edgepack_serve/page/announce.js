// What is read out: one polite line, said when something is finished and never while it grows.

import { byId } from "./dom.js";
import { words } from "./words.js";

const LONGEST = 4000;

/** Have a screen reader say a text when it next pauses. */
export function announce(text) {
  byId("said").textContent = text.length > LONGEST ? `${text.slice(0, LONGEST)}… ${words.goesOn}` : text;
}
