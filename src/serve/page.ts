// The page to chat on: one file, with nothing fetched from elsewhere. History stays in the browser.

const style = `
:root { color-scheme: light dark; --line: light-dark(#d9d9de, #3a3a40); --quiet: light-dark(#66666e, #a0a0a8); --mine: light-dark(#eef1f6, #26282e); --accent: light-dark(#1f5fbf, #7fb0ff); }
* { box-sizing: border-box; }
body { margin: 0; height: 100dvh; display: flex; flex-direction: column; font: 16px/1.5 system-ui, sans-serif; }
header, footer { padding: .6rem 1rem; border-color: var(--line); border-style: solid; border-width: 0; }
header { display: flex; gap: .6rem; align-items: center; border-bottom-width: 1px; }
header h1 { font-size: 1rem; margin: 0; flex: 1; }
footer { border-top-width: 1px; }
main { flex: 1; overflow-y: auto; padding: 1rem; }
main > *, footer > * { max-width: 46rem; margin-inline: auto; }
article { margin-bottom: 1.2rem; overflow-wrap: anywhere; }
article.user > div { background: var(--mine); padding: .5rem .8rem; border-radius: .6rem; white-space: pre-wrap; }
article small { color: var(--quiet); }
article nav { display: inline-flex; gap: .5rem; }
article nav button { border: 0; background: none; color: var(--quiet); padding: .1rem .2rem; font-size: .8rem; text-decoration: underline; }
pre { background: var(--mine); padding: .7rem; border-radius: .4rem; overflow-x: auto; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
form { display: flex; gap: .5rem; align-items: end; }
textarea { flex: 1; resize: none; max-height: 40dvh; padding: .5rem .7rem; font: inherit; border: 1px solid var(--line); border-radius: .5rem; field-sizing: content; }
button, select { font: inherit; padding: .45rem .8rem; border: 1px solid var(--line); border-radius: .5rem; background: Canvas; color: CanvasText; cursor: pointer; }
button.primary { background: var(--accent); border-color: var(--accent); color: Canvas; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
#status { color: var(--quiet); font-size: .8rem; min-height: 1.2rem; margin: .3rem auto 0; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
`;

const script = String.raw`
const $ = (id) => document.getElementById(id);
const log = $("log"), input = $("input"), send = $("send"), status = $("status"), model = $("model");
const saved = "bunsandbytes.chat";
let turns = [];
try { turns = JSON.parse(localStorage.getItem(saved)) ?? []; } catch {}
let running = null;

// Markdown as models write it. Text only ever becomes text nodes: nothing of an answer is taken for HTML.
function inline(parent, text) {
  const mark = /(\x60[^\x60]+\x60)|(\*\*[^*]+\*\*)|(\*[^*\s][^*]*\*)|(\[[^\]]+\]\(https?:\/\/[^)\s]+\))/g;
  let from = 0;
  for (const match of text.matchAll(mark)) {
    parent.append(text.slice(from, match.index));
    from = match.index + match[0].length;
    const [whole, code, strong, emphasis] = match;
    const element = document.createElement(code ? "code" : strong ? "strong" : emphasis ? "em" : "a");
    if (code) element.textContent = whole.slice(1, -1);
    else if (strong) element.textContent = whole.slice(2, -2);
    else if (emphasis) element.textContent = whole.slice(1, -1);
    else {
      const [, label, address] = /\[([^\]]+)\]\(([^)]+)\)/.exec(whole);
      element.textContent = label;
      element.href = address;
      element.rel = "noopener noreferrer";
      element.target = "_blank";
    }
    parent.append(element);
  }
  parent.append(text.slice(from));
}
function markdown(parent, text) {
  parent.replaceChildren();
  const add = (name, to = parent) => to.appendChild(document.createElement(name));
  let list = null, paragraph = null;
  let code = null;
  for (const line of text.split("\n")) {
    if (/^\s*\x60\x60\x60/.test(line)) {
      code = code ? null : add("code", add("pre"));
      list = paragraph = null;
    } else if (code) code.append(line + "\n");
    else if (/^\s*([-*+]|\d+[.)])\s+/.test(line)) {
      const ordered = /^\s*\d/.test(line);
      if (!list || (list.tagName === "OL") !== ordered) list = add(ordered ? "ol" : "ul");
      inline(add("li", list), line.replace(/^\s*([-*+]|\d+[.)])\s+/, ""));
      paragraph = null;
    } else if (/^#{1,6}\s/.test(line)) {
      inline(add("h" + Math.min(6, line.indexOf(" ") + 1)), line.replace(/^#+\s+/, ""));
      list = paragraph = null;
    } else if (!line.trim()) list = paragraph = null;
    else {
      if (paragraph) paragraph.append(document.createElement("br"));
      else paragraph = add("p");
      inline(paragraph, line);
      list = null;
    }
  }
}

function keep() {
  try { localStorage.setItem(saved, JSON.stringify(turns)); } catch { status.textContent = "The browser keeps no more history."; }
}
function button(nav, label, act) {
  const one = nav.appendChild(document.createElement("button"));
  one.type = "button";
  one.textContent = label;
  one.onclick = act;
}
function show() {
  log.replaceChildren(...turns.map((turn, i) => {
    const article = document.createElement("article");
    article.className = turn.role;
    const who = article.appendChild(document.createElement("small"));
    who.textContent = turn.role === "user" ? "You " : "Model ";
    const body = document.createElement("div");
    if (turn.role === "user") body.textContent = turn.content;
    else markdown(body, turn.content);
    const nav = document.createElement("nav");
    if (turn.role === "user") button(nav, "Edit", () => edit(i));
    else button(nav, "Repeat", () => repeat(i));
    button(nav, "Copy", () => navigator.clipboard.writeText(turn.content));
    article.append(body, nav);
    if (turn.note) article.append(Object.assign(document.createElement("small"), { textContent: " " + turn.note }));
    return article;
  }));
  log.scrollTop = log.scrollHeight;
}
function edit(i) {
  if (running) return;
  input.value = turns[i].content;
  turns = turns.slice(0, i);
  keep(); show(); input.focus();
}
function repeat(i) {
  if (running) return;
  turns = turns.slice(0, i);
  answer();
}

// A request to the server, with its key where it asks for one.
async function ask(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(saved);
    const headers = { ...options.headers, ...(key && { authorization: "Bearer " + key }) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status !== 401) throw new Error((await response.json()).error.message);
    const given = prompt("The server asks for its key:");
    if (!given) throw new Error("The server asks for a key.");
    sessionStorage.setItem(saved, given);
  }
}
let loading;
function loadModels() {
  loading ??= ask("/v1/models").then((response) => response.json()).then(({ data }) => {
    model.replaceChildren(...data.map(({ id }) => new Option(id, id)));
    model.hidden = data.length < 2;
  }).catch((error) => { loading = undefined; throw error; });
  return loading;
}

// At most ten times a second: a long answer would keep the page busy with nothing else.
let drawing = 0;
function draw(body, turn) {
  drawing ||= setTimeout(() => {
    drawing = 0;
    if (!running) return;
    markdown(body, turn.content);
    status.textContent = "Writing …";
    log.scrollTop = log.scrollHeight;
  }, 100);
}

async function answer() {
  running = new AbortController();
  send.textContent = "Stop";
  status.textContent = "Reading …";
  const turn = { role: "assistant", content: "" };
  turns.push(turn);
  show();
  const body = log.lastElementChild.children[1];
  const started = performance.now();
  let first = 0, tokens = 0;
  try {
    await loadModels();
    const messages = turns.slice(0, -1).map(({ role, content }) => ({ role, content }));
    const response = await ask("/v1/chat/completions", {
      method: "POST", headers: { "content-type": "application/json" }, signal: running.signal,
      body: JSON.stringify({ model: model.value, messages, stream: true, stream_options: { include_usage: true } }),
    });
    let rest = "";
    for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
      rest += bytes;
      const lines = rest.split("\n\n");
      rest = lines.pop();
      for (const line of lines) {
        const data = line.replace(/^data: /, "");
        if (data === "[DONE]") continue;
        const part = JSON.parse(data);
        if (part.error) throw new Error(part.error.message);
        if (part.usage) tokens = part.usage.completion_tokens;
        const text = part.choices[0]?.delta?.content;
        if (!text) continue;
        first ||= performance.now();
        turn.content += text;
        draw(body, turn);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") status.textContent = error.message;
    else status.textContent = "Stopped.";
  }
  const seconds = (performance.now() - (first || started)) / 1000;
  if (tokens > 1) {
    turn.note = ((tokens - 1) / seconds).toFixed(1) + " tokens a second";
    status.textContent = turn.note + ", first after " + ((first - started) / 1000).toFixed(2) + " s" + await memory();
  }
  if (!turn.content) turns.pop();
  running = null;
  send.textContent = "Send";
  keep(); show(); input.focus();
}
async function memory() {
  try {
    const { memory_bytes: bytes } = await (await fetch("/health")).json();
    return ", " + (bytes / 2 ** 20).toFixed(0) + " MB of memory";
  } catch { return ""; }
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const content = input.value.trim();
  if (!content) return;
  input.value = "";
  turns.push({ role: "user", content });
  answer();
};
input.onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
  if (event.key === "Escape" && running) running.abort();
};
$("new").onclick = () => { if (running) running.abort(); turns = []; keep(); show(); input.focus(); };
loadModels().catch(() => {});
show();
input.focus();
`;

const html = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Chat</title>
<link rel="icon" href="data:,">
<style>${style}</style>
</head>
<body>
<header><h1>Chat</h1><label class="hidden" for="model">Model</label><select id="model" hidden></select><button id="new" type="button">New chat</button></header>
<main id="log" role="log" aria-live="polite" aria-label="Conversation" tabindex="0"></main>
<footer>
<form id="form"><label class="hidden" for="input">Message</label>
<textarea id="input" rows="1" placeholder="Message (Enter sends, Shift+Enter breaks the line, Esc stops)"></textarea>
<button id="send" class="primary">Send</button></form>
<p id="status" role="status"></p>
</footer>
<script type="module">${script}</script>
</body>
</html>
`;

const sha256 = (text: string) => `'sha256-${new Bun.CryptoHasher("sha256").update(text).digest("base64")}'`;

/** Only the page's own script and style run, and it talks to its own server only. */
const policy = [
  ...["default-src 'none'", `script-src ${sha256(script)}`, `style-src ${sha256(style)}`, "connect-src 'self'"],
  ...["img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"],
].join("; ");

export function page(): Response {
  const headers = { "content-type": "text/html; charset=utf-8", "content-security-policy": policy };
  return new Response(html, {
    headers: { ...headers, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer" },
  });
}
