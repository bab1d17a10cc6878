// What every answer is asked with: the system prompt and how tokens are drawn. An empty field is the model's own way.

import { byId, make } from "./dom.js";
import { keep, kept } from "./kept.js";
import { words } from "./words.js";

/** The fields of a request that a number sets, each with its range. */
const NUMBERS = {
  temperature: { min: 0, max: 5, step: "any" },
  top_p: { min: 0, max: 1, step: "any" },
  top_k: { min: 0, step: 1 },
  min_p: { min: 0, max: 1, step: "any" },
  max_tokens: { min: 1, step: 1 },
  seed: { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
};

/** The dialog of the settings. */
export class Settings {
  constructor() {
    this.dialog = byId("settings");
    this.form = this.dialog.querySelector("form");
    this.system = byId("system");
    for (const [name, range] of Object.entries(NUMBERS)) byId("numbers").append(numberField(name, range));
    this.values = kept("settings") ?? {};
    byId("open-settings").addEventListener("click", () => this.open());
    byId("close-settings").addEventListener("click", () => this.close());
    byId("own-settings").addEventListener("click", () => {
      this.form.reset();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.close();
    });
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      this.close();
    });
  }

  /** Return what requests are to have: `system` and the numbers, null where the field is empty. */
  get asked() {
    const numbers = Object.keys(NUMBERS).map((name) => [name, this.values[name] ?? null]);
    return { system: this.system.disabled ? "" : this.values.system ?? "", ...Object.fromEntries(numbers) };
  }

  /** Have a system prompt only where the model's template prints one. */
  allowSystem(allowed) {
    this.system.disabled = !allowed;
    byId("system-hint").textContent = allowed ? words.systemHint : words.noSystem;
  }

  open() {
    this.system.value = this.values.system ?? "";
    for (const name of Object.keys(NUMBERS)) byId(name).value = this.values[name] ?? "";
    this.dialog.showModal();
  }

  close() {
    if (!this.form.reportValidity()) return;
    this.values = { system: this.system.value.trim() };
    for (const name of Object.keys(NUMBERS)) {
      if (byId(name).value !== "") this.values[name] = byId(name).valueAsNumber;
    }
    keep("settings", this.values);
    this.dialog.close();
  }
}

function numberField(name, range) {
  const hint = `${name}-hint`;
  const field = make("input", { id: name, type: "number", class: "field", placeholder: words.modelsOwn, "aria-describedby": hint, ...range });
  const text = words.settings[name];
  return make("div", { class: "setting" }, make("label", { for: name }, text.name), field, make("p", { class: "hint", id: hint }, text.hint));
}
