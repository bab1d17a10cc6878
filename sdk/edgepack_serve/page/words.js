// Everything that the pages say, in one place: another language is another such file.

export const language = { lang: "en", dir: "ltr" };

const number = new Intl.NumberFormat(language.lang, { maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(language.lang, { timeStyle: "medium" });
const bytes = new Intl.NumberFormat(language.lang, { maximumSignificantDigits: 3 });

export const words = {
  // the head of the page
  skip: "Skip to the question",
  skipStatus: "Skip to the models",
  tools: "Tools",
  fresh: "New chat",
  settingsTitle: "Settings",
  statusTitle: "Status",
  theme: "Dark theme",
  model: "Model",

  // before the first question
  welcomeTitle: "What would you like to know?",
  welcomeText: "A language model answers. It can be wrong, so check what matters.",

  // the question
  conversation: "Conversation",
  ask: "Ask",
  question: "Your question",
  questionHint: "Ask something",
  send: "Send",
  stop: "Stop",
  keysHint: "Enter sends, Shift + Enter begins a line, Esc stops an answer.",
  newest: "To the newest text",
  unkept: "The conversation has become too long to outlive a reload of this page.",
  busy: "An answer is on its way. Esc stops it.",

  // the turns
  you: "You",
  answer: "Answer",
  waiting: "Waiting for the first word",
  thinking: "Thinking…",
  thoughts: "Thoughts",
  edit: "Edit",
  editLabel: "Edit the question",
  editHint: "What came after this question is left out.",
  editSend: "Ask again",
  cancel: "Cancel",
  again: "Try again",
  goOn: "Go on",
  copy: "Copy",
  copied: "Copied",
  notCopied: "Not copied",
  goesOn: "The rest is on the page.",
  figures: ({ tokens, rate }) =>
    [tokens && `${number.format(tokens)} tokens`, rate && `${number.format(rate)} a second`].filter(Boolean).join(", "),

  // what is in an answer
  code: "Code",
  codeIn: (name) => `Code, ${name}`,
  table: "Table",
  picture: (text) => (text ? `Picture: ${text}` : "Picture"),
  taskDone: "Done:",
  taskOpen: "To do:",

  // what went wrong
  cut: "The answer ended at its limit of tokens.",
  cutInThought: "The limit of tokens was reached within the model's thoughts. Allow more of them in the settings, or try again.",
  empty: "The model gave an empty answer. Try again, or ask in other words.",
  stopped: "Stopped before the first word.",
  unloaded: "The answer broke off because the page was left. Try again.",
  gone: "The server does not answer. See whether it still runs, then try again.",
  lost: "The answer broke off because the connection ended. See whether the server still runs, then try again.",
  failed: "Something failed on this page. Try again, or load it anew.",
  noModels: "The server has no model that answers. Start it with one: edgepack serve BUNDLE.",
  refused: (status) => `The server refused with status ${status}. Try again, or look at its log.`,
  retryAt: (time) => `There should be room again at ${clock.format(time)}.`,

  // the settings
  close: "Close",
  system: "System prompt",
  systemHint: "What the model is told before the first question.",
  noSystem: "This model knows no system prompt.",
  sampling: "How words are chosen",
  modelsOwn: "the model’s own",
  ownSettings: "Back to the model’s own",
  done: "Done",
  settings: {
    temperature: { name: "Temperature", hint: "0 always takes the likeliest word." },
    top_p: { name: "Top p", hint: "Only the likeliest words that make up this share." },
    top_k: { name: "Top k", hint: "Only so many of the likeliest words." },
    min_p: { name: "Min p", hint: "Only words at least this likely, next to the best." },
    max_tokens: { name: "Token limit", hint: "Where an answer ends at the latest." },
    seed: { name: "Seed", hint: "The same seed gives the same answer." },
  },

  // the token
  tokenTitle: "This server asks for a token",
  tokenWhy: "Whoever started the server has it.",
  tokenWrong: "The server did not take that token. Whoever started it has the right one.",
  tokenField: "Token",
  tokenHint: "It is kept until this tab is closed.",
  enter: "Enter",

  // a screen that strangers share
  kioskTitle: "Ask me",
  kioskWelcome: "Touch the field below and type a question.",
  over: "Start over",
  idle: "Is anybody there? Touch the screen to go on.",

  // the status page
  backToChat: "Back to the chat",
  models: "Models",
  server: "Server",
  version: "Version",
  uptime: "Running for",
  resident: "Memory of the server",
  available: "Memory that is free",
  unknown: "unknown",
  states: { loaded: "Loaded", loading: "Loading", idle: "Not loaded" },
  statesHint: { idle: "It is loaded when it is asked for." },
  facts: {
    variant: "Variant",
    engine: "Engine",
    device: "Device",
    context: "Context",
    parallel: "At the same time",
    requests: "Requests",
    memory: "Memory",
    rate: "Speed",
    can: "Can",
    licence: "Licence",
    bundle: "Bundle",
    reason: "Why this variant",
  },
  tokens: (count) => `${number.format(count)} tokens`,
  perSecond: (rate) => `${number.format(rate)} tokens a second`,
  requests: (running, waiting) => `${running} running, ${waiting} waiting`,
  parallel: (count) => (count === 1 ? "1 answer" : `${number.format(count)} answers`),
  abilities: { thinks: "think", tools: "call tools", system_role: "take a system prompt", embeds: "embed texts" },
  refreshed: (time) => `As of ${clock.format(time)}. Refreshed every few seconds.`,
  bytes: (count) => {
    const [size, unit] = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]].find(([each]) => count >= each) ?? [1, "bytes"];
    return `${bytes.format(count / size)} ${unit}`;
  },
  duration: (seconds) => {
    const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
    if (days) return `${days} d ${hours} h`;
    return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
  },
};
