// The question for the token, where the server lets nobody in without one.

import { byId } from "./dom.js";
import { setToken } from "./server.js";
import { words } from "./words.js";

/** Ask for the token; returns whether one was given. `message` is what the server said. */
export function askForToken(message) {
  const dialog = byId("token");
  const field = byId("token-field");
  byId("token-why").textContent = message || words.tokenWhy;
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
        setToken(field.value.trim());
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
