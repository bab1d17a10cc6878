// The chat: what is typed goes to the server, and what comes back grows on the page.

import { announce, announceAnswer } from "./announce.js";
import { Composer } from "./composer.js";
import { Conversation, request } from "./conversation.js";
import { byId } from "./dom.js";
import { Following } from "./following.js";
import { beKiosk, kiosk } from "./kiosk.js";
import { keep, kept } from "./kept.js";
import { label } from "./labels.js";
import { Models } from "./models.js";
import { chat } from "./server.js";
import { Settings } from "./settings.js";
import { askForToken } from "./token.js";
import { shown } from "./turns.js";
import { words } from "./words.js";

const SAVE_MS = 1000;
const ways = { links: !kiosk, copy: !kiosk, edit: !kiosk, figures: !kiosk };

label();
const conversation = new Conversation(kept("turns") ?? []);
const settings = new Settings();
const models = new Models(settings);
const following = new Following();
const composer = new Composer({ send, stop });
const views = new Map();
let answering = null; // the answer on its way, with what stops it
let saving = 0;
let leaving = false;

const deeds = {
  grown: () => following.grown(),
  again: (turn) => anew(turn),
  goOn: (turn) => answer(turn, { goOn: true }),
  edited: (turn, text) => anew(turn, text),
};

function send(text) {
  if (answering) {
    announce(words.busy);
    return false;
  }
  conversation.ask(text);
  answer(conversation.begin());
  return true;
}

function stop() {
  answering?.control.abort();
}

/** Ask again from a turn on; what came after it is forgotten. A question may have another text. */
async function anew(turn, text = null) {
  stop();
  await answering?.ended;
  conversation.cut(turn);
  if (text !== null) conversation.ask(text);
  composer.field.focus();
  await answer(conversation.begin());
}

function answer(turn, how = {}) {
  const control = new AbortController();
  const ended = grow(turn, control.signal, how).finally(() => {
    answering = null;
    composer.busy(false);
    save();
  });
  answering = { turn, control, ended };
  composer.busy(true);
  return ended;
}

async function grow(turn, signal, how) {
  Object.assign(turn, { ending: null, fault: null });
  const before = turn.figures.tokens ?? 0; // of an answer that goes on
  draw();
  following.toEnd();
  announce(words.waiting);
  try {
    const body = request(await models.chosen(), conversation.messages(turn, how), settings.asked, how);
    let ending = "stop";
    for await (const piece of chat(body, signal)) {
      turn.thoughts += piece.thought ?? "";
      turn.text += piece.text ?? "";
      if (piece.figures) turn.figures = { ...piece.figures, tokens: before + (piece.figures.tokens ?? 0) };
      ending = piece.ending ?? ending;
      if (piece.text || piece.thought) views.get(turn.id).update();
      saving ||= setTimeout(save, SAVE_MS);
    }
    turn.ending = ending;
  } catch (fault) {
    if (fault.status === 401 && (await askForToken())) return grow(turn, signal, how);
    fail(turn, fault);
  }
  views.get(turn.id)?.update();
  following.grown();
  if (turn.fault || !turn.text) announce(turn.fault?.message ?? words.empty);
  else announceAnswer(turn.text);
  return undefined;
}

function fail(turn, fault) {
  if (fault.name === "AbortError") turn.ending = "stopped";
  else {
    const retryAt = fault.retryAfter === null ? null : Date.now() + fault.retryAfter * 1000;
    turn.ending = "failed";
    turn.fault = { message: fault.message || words.failed, retryAt };
  }
}

/** Show the turns that there are: each once, in order. */
function draw() {
  const place = byId("turns");
  const there = new Set(conversation.turns.map((turn) => turn.id));
  for (const [id, view] of views) {
    if (there.has(id)) continue;
    view.element.remove();
    views.delete(id);
  }
  for (const turn of conversation.turns) {
    if (views.has(turn.id)) views.get(turn.id).update();
    else {
      views.set(turn.id, shown(turn, ways, deeds));
      place.append(views.get(turn.id).element);
    }
  }
  byId("welcome").hidden = conversation.turns.length > 0;
  document.documentElement.classList.toggle("begun", conversation.turns.length > 0);
}

function save() {
  clearTimeout(saving);
  saving = 0;
  if (leaving) return; // what breaks off because the page is left is found cut at the next visit
  byId("unkept").hidden = keep("turns", conversation.turns);
}

/** Forget the conversation, and what was typed. */
async function reset() {
  stop();
  await answering?.ended;
  conversation.clear();
  draw();
  composer.clear();
  save();
  getSelection()?.removeAllRanges();
  window.scrollTo({ top: 0, behavior: "instant" });
  if (!kiosk) return composer.field.focus();
  composer.field.blur();
  return models.load(); // a server that was gone may be back
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && answering && !document.querySelector("dialog[open]")) stop();
});
window.addEventListener("pagehide", () => {
  save();
  leaving = true;
});
window.addEventListener("pageshow", () => {
  leaving = false;
});
byId("fresh").addEventListener("click", reset);
if (kiosk) {
  beKiosk({ reset, busy: () => answering !== null });
  composer.fit();
} else composer.field.focus();
draw();
following.toEnd();
models.load();
