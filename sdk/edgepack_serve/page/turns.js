// A turn on the page: what was asked or answered, what can be done with it, and what went wrong.

import { copyButton } from "./copying.js";
import { make } from "./dom.js";
import { Growing } from "./growing.js";
import { icon } from "./icons.js";
import { isEnter } from "./keys.js";
import { words } from "./words.js";

/** Return what shows a turn: `{turn, element, update}`. `deeds` are what its buttons do, `ways` how it is drawn. */
export function shown(turn, ways, deeds) {
  return turn.role === "user" ? new Question(turn, ways, deeds) : new Answer(turn, ways, deeds);
}

const button = (name, word, heard, kind = "quiet") =>
  make("button", { type: "button", class: kind, on: { click: heard } }, icon(name), make("span", {}, word));

class Question {
  constructor(turn, ways, deeds) {
    this.turn = turn;
    this.deeds = deeds;
    this.text = make("div", { class: "bubble", dir: "auto" }, turn.text);
    this.actions = make("div", { class: "actions" });
    if (ways.edit) this.actions.append(button("edit", words.edit, () => this.edit()));
    if (ways.copy) this.actions.append(copyButton(() => turn.text));
    this.element = make("article", { class: "question" }, make("h2", { class: "unseen" }, words.you), this.text, this.actions);
  }

  update() {}

  edit() {
    const field = make("textarea", { class: "field", dir: "auto", rows: "3", "aria-label": words.editLabel, "aria-describedby": `anew-${this.turn.id}` });
    field.value = this.turn.text;
    const over = () => {
      form.replaceWith(this.text, this.actions);
      this.actions.querySelector("button").focus();
    };
    const send = () => field.value.trim() && this.deeds.edited(this.turn, field.value.trim());
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") over();
      else if (isEnter(event)) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const hint = make("p", { class: "hint", id: `anew-${this.turn.id}` }, words.editHint);
    const buttons = make("div", { class: "buttons" }, button("close", words.cancel, over), button("send", words.editSend, send, "primary"));
    const form = make("div", { class: "editing" }, field, hint, buttons);
    this.actions.remove();
    this.text.replaceWith(form);
    field.style.height = `${field.scrollHeight + 2}px`;
    field.focus();
  }
}

class Answer {
  constructor(turn, ways, deeds) {
    this.turn = turn;
    this.ways = ways;
    this.deeds = deeds;
    this.thought = document.createTextNode("");
    this.summary = make("summary");
    this.thoughts = make("details", { class: "thoughts", hidden: true }, this.summary, make("div", { dir: "auto" }, this.thought));
    this.body = make("div", { class: "body" });
    this.waiting = make("p", { class: "waiting" }, make("span", { class: "dots", "aria-hidden": "true" }), words.waiting);
    this.foot = make("div", { class: "foot" });
    const parts = [make("h2", { class: "unseen" }, words.answer), this.thoughts, this.body, this.waiting, this.foot];
    this.element = make("article", { class: "answer" }, ...parts);
    this.drawing = new Growing(this.body, ways, () => deeds.grown());
    this.update();
  }

  /** Show the turn as it is now. */
  update() {
    const { turn } = this;
    if (turn.thoughts) {
      this.thoughts.hidden = false;
      this.thought.appendData(turn.thoughts.slice(this.thought.length));
      this.summary.textContent = turn.ending || turn.text ? words.thoughts : words.thinking;
    }
    this.waiting.hidden = Boolean(turn.ending || turn.text);
    if (turn.ending) this.drawing.finish(turn.text);
    else if (turn.text) this.drawing.show(turn.text);
    this.element.setAttribute("aria-busy", String(!turn.ending));
    this.foot.replaceChildren(...(turn.ending ? this.ended() : []));
  }

  ended() {
    const { turn, deeds } = this;
    const again = (kind) => button("again", words.again, () => deeds.again(turn), kind);
    const note = this.note(again);
    const actions = make("div", { class: "actions" });
    if (turn.text && this.ways.copy) actions.append(copyButton(() => turn.text));
    if (this.ways.edit && !note?.again) actions.append(again("quiet"));
    const figures = this.ways.figures && words.figures(turn.figures);
    if (figures) actions.append(make("span", { class: "figures" }, figures));
    return [note?.element, actions].filter(Boolean);
  }

  /** Return what is to be said of an ending that was none of the model's own. */
  note(again) {
    const { turn, deeds } = this;
    if (turn.ending === "length" && turn.text) {
      const on = button("down", words.goOn, () => deeds.goOn(turn), "secondary");
      return { element: make("div", { class: "note" }, make("p", {}, words.cut), on), again: false };
    }
    const [kind, text] = this.trouble();
    if (!text) return null;
    const said = make("p", { dir: "auto" }, text);
    const when = turn.fault?.retryAt ? make("p", {}, words.retryAt(new Date(turn.fault.retryAt))) : null;
    const texts = make("div", {}, said, when);
    return { element: make("div", { class: `note ${kind}` }, texts, again("secondary")), again: true };
  }

  trouble() {
    const { turn } = this;
    if (turn.ending === "failed") return ["fault", turn.fault.message];
    if (turn.ending === "unloaded") return ["", words.unloaded];
    if (turn.ending === "stopped") return ["", turn.text ? "" : words.stopped];
    if (!turn.text) return ["", turn.ending === "length" ? words.cutInThought : words.empty];
    return ["", ""];
  }
}
