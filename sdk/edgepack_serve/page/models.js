// Which models the server has, and which one is asked.

import { byId, make } from "./dom.js";
import { keep, kept } from "./kept.js";
import { Fault, models as names, status } from "./server.js";
import { askForToken } from "./token.js";
import { words } from "./words.js";

/** The choice of a model at the head of the page. */
export class Models {
  constructor(settings) {
    this.settings = settings;
    this.name = null;
    this.facts = new Map();
    this.loading = null;
    byId("notice-again").addEventListener("click", () => this.load());
  }

  /** Return the name of the model that is asked, once it is known. Raises `Fault`. */
  async chosen() {
    if (this.name === null) await this.fetched();
    return this.name;
  }

  /** Ask the server for its models, and say on the page where it has none to offer. */
  async load() {
    byId("notice").hidden = true;
    try {
      await this.fetched();
    } catch (fault) {
      if (fault.status === 401 && (await askForToken())) return this.load();
      byId("notice-text").textContent = fault.message;
      byId("notice").hidden = false;
    }
    return undefined;
  }

  fetched() {
    this.loading ??= this.fetch().finally(() => {
      this.loading = null;
    });
    return this.loading;
  }

  async fetch() {
    const all = await names();
    const facts = await status().catch(() => ({ models: [] }));
    this.facts = new Map(facts.models.map((model) => [model.name, model]));
    const offered = all.filter((name) => !this.facts.get(name)?.embeds); // such a model gives vectors, and no answers
    if (!offered.length) throw new Fault(0, words.noModels);
    byId("notice").hidden = true;
    this.choose(offered.includes(kept("model")) ? kept("model") : offered[0]);
    this.show(offered);
  }

  choose(name) {
    this.name = name;
    this.settings.allowSystem(this.facts.get(name)?.system_role ?? true);
  }

  show(offered) {
    const place = byId("model");
    if (!place) return;
    if (offered.length < 2) {
      place.replaceChildren(make("span", { class: "model-name" }, this.name ?? ""));
      return;
    }
    const choice = make("select", { class: "field", "aria-label": words.model });
    for (const name of offered) choice.append(make("option", { value: name }, name));
    choice.value = this.name;
    choice.addEventListener("change", () => {
      this.choose(choice.value);
      keep("model", choice.value);
    });
    place.replaceChildren(choice);
  }
}
