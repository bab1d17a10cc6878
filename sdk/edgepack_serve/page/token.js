// The question for the token, where the server lets nobody in without one.

import { byId } from "./dom.js";
import { keep, kept } from "./kept.js";
import { words } from "./words.js";

let asking = null;

/** Ask for the token, once for all who need it; returns whether one was given. */
export function askForToken() {
  asking ??= asked().finally(() => {
    asking = null;
  });
  return asking;
}

function asked() {
  const dialog = byId("token");
  const field = byId("token-field");
  byId("token-why").textContent = kept("token") ? words.tokenWrong : words.tokenWhy;
  field.value = "";
  return new Promise((resolve) => {
    const ended = new AbortController();
    const end = (given) => {
      ended.abort();
      dialog.close();
      resolve(given);
    };
    const heard = { signal: ended.signal };
    byId("token-form").addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        if (!field.value.trim()) return;
        keep("token", field.value.trim());
        end(true);
      },
      heard,
    );
    byId("no-token").addEventListener("click", () => end(false), heard);
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      end(false);
    }, heard);
    dialog.showModal();
  });
}
