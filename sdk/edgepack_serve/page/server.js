// The server's doors as this page uses them: the models, the status, and a chat as a stream of pieces.

import { kept } from "./kept.js";
import { events } from "./sse.js";
import { words } from "./words.js";

/** What the server refused, or that it is not there: `message` is for people, `status` 0 where there was no answer. */
export class Fault extends Error {
  constructor(status, message, { retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Return the names of the models. */
export async function models() {
  const { data } = await json("v1/models");
  return data.map((model) => model.id);
}

/** Return what the server says of itself and of its models. */
export const status = () => json("status.json");

/** Yield `{text}`, `{thought}`, `{ending}` and `{figures}` as they come. Raises `Fault`; stops when the signal says so. */
export async function* chat(body, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  let ended = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      for (const piece of pieces(JSON.parse(data))) {
        ended ||= "ending" in piece;
        yield piece;
      }
    }
  } catch (error) {
    if (error instanceof Fault || error.name === "AbortError") throw error;
    throw new Fault(0, words.lost);
  }
  if (!ended) throw new Fault(0, words.lost);
}

function* pieces(chunk) {
  if (chunk.error) throw new Fault(500, chunk.error.message ?? words.failed);
  const [choice] = chunk.choices ?? [];
  const delta = choice?.delta ?? {};
  if (delta.reasoning_content) yield { thought: delta.reasoning_content };
  if (delta.content) yield { text: delta.content };
  if (choice?.finish_reason) yield { ending: choice.finish_reason };
  if (chunk.usage || chunk.timings) yield { figures: figures(chunk.usage ?? {}, chunk.timings ?? {}) };
}

function figures(usage, timings) {
  const [tokens, rate] = [usage.completion_tokens, timings.decode_tps];
  return { ...(Number.isFinite(tokens) && { tokens }), ...(Number.isFinite(rate) && { rate }) };
}

async function json(path) {
  return (await ask(path, {})).json();
}

async function ask(path, options) {
  const token = kept("token");
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(0, words.gone);
  }
  if (response.ok) return response;
  throw new Fault(response.status, await message(response), { retryAfter: seconds(response.headers.get("Retry-After")) });
}

async function message(response) {
  const sent = await response.json().catch(() => null);
  const text = sent?.error?.message ?? sent?.error;
  return typeof text === "string" && text ? text : words.refused(response.status);
}

function seconds(header) {
  if (header === null) return null;
  const given = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(given) ? Math.max(0, Math.ceil(given)) : null;
}
