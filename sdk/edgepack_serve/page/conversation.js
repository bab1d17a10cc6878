// What was said, as plain data: no page and no server here.
//
// A turn is `{id, role, text, thoughts, ending, figures, fault}`. `ending` says how an answer ended: "stop", "length",
// "stopped" by its reader, "failed" with a fault, null while it grows.

/** The turns of a conversation, each question with its answer. */
export class Conversation {
  constructor(turns = []) {
    this.turns = turns;
    this.last = Math.max(0, ...turns.map((turn) => turn.id));
    for (const turn of turns) if (turn.role === "assistant") turn.ending ??= "unloaded";
  }

  /** Add a question and return it. */
  ask(text) {
    return this.add({ role: "user", text });
  }

  /** Add an answer that is to come and return it. */
  begin() {
    return this.add({ role: "assistant", text: "", thoughts: "", ending: null, figures: {}, fault: null });
  }

  add(turn) {
    this.last += 1;
    this.turns.push({ id: this.last, ...turn });
    return this.turns.at(-1);
  }

  /** Forget a turn and all after it. */
  cut(turn) {
    this.turns.splice(this.turns.indexOf(turn));
  }

  clear() {
    this.turns.length = 0;
  }

  /**
   * Return the messages that an answer follows, or with which it goes on where it has begun. A question that got no
   * answer is left out with it, since most models expect the two in turn.
   */
  messages(answer, { goOn = false } = {}) {
    const said = [];
    for (const turn of this.turns) {
      if (turn === answer && !goOn) break;
      if (turn.role === "assistant" && !turn.text) said.pop();
      else said.push({ role: turn.role, content: turn.text });
      if (turn === answer) break;
    }
    return said;
  }
}

/** Return the body of a request for an answer. A setting that is null is the model's own. */
export function request(model, messages, { system, ...sampling }, { goOn = false } = {}) {
  const given = Object.fromEntries(Object.entries(sampling).filter(([, value]) => value !== null));
  return {
    model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
    ...given,
    ...(goOn && { continue_final: true }),
  };
}
