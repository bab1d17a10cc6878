// The status page: what the server says of itself and of its models, every few seconds.

import { byId, make } from "./dom.js";
import { label } from "./labels.js";
import { status } from "./server.js";
import { askForToken } from "./token.js";
import { words } from "./words.js";

const EVERY_MS = 3000;
let timer = 0;
let asking = false;

label();
byId("notice-again").addEventListener("click", () => refresh());
document.addEventListener("visibilitychange", () => document.hidden || refresh());
refresh();

async function refresh() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  const again = await refreshed();
  asking = false;
  if (again && !document.hidden) timer = setTimeout(refresh, EVERY_MS);
}

/** Show how the server is; returns whether to ask again in a while. */
async function refreshed() {
  try {
    show(await status());
    byId("notice").hidden = true;
  } catch (fault) {
    if (fault.status === 401 && (await askForToken())) return refreshed();
    trouble(fault);
    return fault.status !== 401; // whoever has no token is not asked every few seconds
  }
  return true;
}

function trouble(fault) {
  byId("notice-text").textContent = fault.message || words.failed;
  byId("notice").hidden = false;
}

function show(facts) {
  const { memory } = facts;
  byId("server").replaceChildren(
    ...pair(words.version, facts.version),
    ...pair(words.uptime, words.duration(facts.uptime_s)),
    ...pair(words.resident, words.bytes(memory.resident_bytes)),
    ...pair(words.available, memory.available_bytes === null ? words.unknown : words.bytes(memory.available_bytes)),
  );
  const place = byId("models");
  const cards = new Map([...place.children].map((card) => [card.dataset.name, card]));
  const wanted = facts.models.map((model) => changed(cards.get(model.name), model));
  if (wanted.some((card, at) => place.children[at] !== card) || place.childElementCount !== wanted.length) place.replaceChildren(...wanted);
  byId("refreshed").textContent = words.refreshed(new Date());
}

/** Return the card of a model; the one that is there, where nothing has changed, so that what is selected stays so. */
function changed(card, model) {
  const facts = JSON.stringify(model);
  if (card?.facts === facts) return card;
  const made = modelCard(model);
  made.facts = facts;
  return made;
}

function modelCard(model) {
  const can = Object.entries(words.abilities).filter(([name]) => model[name]).map(([, word]) => word);
  const named = [
    [words.facts.variant, model.variant],
    [words.facts.engine, [model.backend, model.engine].filter(Boolean).join(", ")],
    [words.facts.device, model.device],
    [words.facts.context, model.context && words.tokens(model.context)],
    [words.facts.parallel, model.parallel && words.parallel(model.parallel)],
    [words.facts.requests, words.requests(model.running ?? 0, model.waiting ?? 0)],
    [words.facts.memory, model.memory_bytes && words.bytes(model.memory_bytes)],
    [words.facts.rate, model.tokens_per_second && words.perSecond(model.tokens_per_second)],
    [words.facts.can, can.join(", ")],
    [words.facts.licence, model.licence],
    [words.facts.reason, model.reason],
    [words.facts.bundle, model.bundle_id],
  ].filter(([, value]) => value);
  const state = make("span", { class: `state ${model.state in words.states ? model.state : ""}` }, words.states[model.state] ?? model.state);
  const head = make("div", { class: "model-head" }, make("h3", {}, model.name), state);
  const hint = words.statesHint[model.state];
  const facts = make("dl", {}, ...named.flatMap(([name, value]) => pair(name, value)));
  return make("article", { class: "model", "data-name": model.name }, head, hint ? make("p", { class: "hint" }, hint) : null, facts);
}

function pair(name, value) {
  return [make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, String(value)))];
}
