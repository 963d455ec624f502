"use strict";
const at = (id) => document.getElementById(id);
const formatScore = (value) => typeof value === "number" ? value.toFixed(3) : "unknown";

// Texts of transcripts become text nodes, never HTML.
function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function fillSelect(select, labels) {
  select.replaceChildren(...labels.map((label, index) => {
    const option = make("option", label);
    option.value = index;
    return option;
  }));
}

function words(text) { return text.match(/\S+\s*/g) || []; }

// The difference by the longest common subsequence of words; without marks for texts that are too long for it.
function difference(before, after) {
  const a = words(before), b = words(after), box = document.createDocumentFragment();
  if (a.length * b.length > 4e6) { box.append(after); return box; }
  const same = (i, j) => a[i].trim() === b[j].trim();
  const table = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      table[i][j] = same(i, j) ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && same(i, j)) { box.append(b[j]); i++; j++; }
    else if (i < a.length && (j === b.length || table[i + 1][j] >= table[i][j + 1])) box.append(make("del", a[i++]));
    else box.append(make("ins", b[j++]));
  }
  return box;
}

// The prompt as the model saw it: the chat template around the messages, if the transcript has the template.
function promptText(turn) {
  if (!turn.template) return turn.messages.map((message) => `[${message.role}]\n${message.content}`);
  const place = (match, number) => turn.messages[number] ? turn.messages[number].content : match;
  return [turn.template.replace(/\{(\d+)\}/g, place)];
}

function itemText(item) {
  if (!item) return "";
  return item.key && !item.value.toLowerCase().includes(item.key.toLowerCase()) ? `${item.key}: ${item.value}` : item.value;
}

function changeLine(change) {
  const line = make("div", undefined, "change"), before = itemText(change.before), after = itemText(change.after);
  line.append(make("span", `${change.operation} ${change.id} `, "soft"));
  if (change.before && change.after) line.append(difference(before, after));
  else line.append(make(change.after ? "ins" : "del", change.after ? after : before));
  return line;
}

function turnTitle(turn, number) {
  const counted = typeof turn.reply_tokens === "number";
  const trained = turn.trainable && typeof turn.advantage === "number";
  return [
    `turn ${number}: ${turn.step}`,
    ...(counted ? [`${turn.prompt_tokens} prompt tokens`, `${turn.reply_tokens} reply tokens`] : []),
    ...("trainable" in turn ? [trained ? `advantage ${formatScore(turn.advantage)}` : "not trained"] : []),
    ...(turn.shared ? ["shared with other rows"] : []),
    ...(turn.stop === "length" ? ["cut by length"] : []),
  ].join(", ");
}

function turnBox(turn, number, previousReply, changes) {
  const box = make("div", undefined, "turn");
  box.append(make("div", turnTitle(turn, number), "head"));
  if (turn.messages) {
    const prompt = make("details");
    prompt.append(make("summary", "prompt"));
    for (const text of promptText(turn)) prompt.append(make("div", text, "text"));
    box.append(prompt);
  }
  const reply = make("div", undefined, "text");
  reply.append(previousReply === undefined ? turn.reply : difference(previousReply, turn.reply));
  box.append(reply, ...changes.map(changeLine));
  return box;
}

function wordTable(names, rows) {
  const table = make("table", undefined, "bank"), head = make("tr");
  head.append(...names.map((name) => make("th", name, "word")));
  table.append(head);
  for (const row of rows) {
    const line = make("tr");
    line.append(...row.map((cell) => make("td", cell, "word")));
    table.append(line);
  }
  return table;
}

function showBank(bank, box) {
  const shown = bank.items.length < bank.size ? `, ${bank.items.length} of them shown` : "";
  box.append(make("h2", `Memory bank: ${bank.size} ${bank.size === 1 ? "item" : "items"}${shown}`));
  const others = bank.changes.filter((change) => change.turn === null);
  if (others.length) {
    const details = make("details"), count = others.length === 1 ? "1 change" : `${others.length} changes`;
    details.append(make("summary", `${count} outside the turns above`), ...others.map(changeLine));
    box.append(details);
  }
  const rank = (id) => bank.retrieved.includes(id) ? String(bank.retrieved.indexOf(id) + 1) : "";
  const times = (item) => [item.created_at, item.updated_at].filter((time) => time).join(" / ");
  const rows = bank.items.map((item) => [
    item.id, itemText(item), (item.sources || []).join(", "), times(item), item.namespace || "", item.version || 1,
    rank(item.id), bank.citations.includes(item.id) ? "cited" : "",
  ]);
  const names = ["id", "item", "sources", "created / updated", "namespace", "version", "retrieval rank", "in the answer"];
  if (rows.length) box.append(wordTable(names, rows));
}

function showEpisode(episode) {
  const box = at("episode"), lastReply = {}, changes = episode.bank ? episode.bank.changes : [];
  box.replaceChildren(...episode.facts.map(([title, text]) => make("p", `${title}: ${text}`)));
  episode.turns.forEach((turn, index) => {
    const own = changes.filter((change) => change.turn === index + 1);
    box.append(turnBox(turn, index + 1, lastReply[turn.step], own));
    lastReply[turn.step] = turn.reply;
  });
  if (episode.bank) showBank(episode.bank, box);
}

function showGroup(group) {
  const buttons = group.episodes.map((episode) => {
    const button = make("button", `${episode.label}: ${formatScore(episode.score)}`);
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      showEpisode(episode);
    });
    return button;
  });
  at("episodes").replaceChildren(...buttons);
  buttons[0].click();
}

function showSection(section) {
  fillSelect(at("group"), section.groups.map((group) => {
    const scores = group.episodes.map((episode) => formatScore(episode.score)).join(" ");
    return `${group.title} (${scores})`;
  }));
  if (section.groups.length) showGroup(section.groups[0]);
}

fillSelect(at("section"), sections.map((section) => section.title));
at("section").addEventListener("change", () => showSection(sections[at("section").value]));
at("group").addEventListener("change", () => showGroup(sections[at("section").value].groups[at("group").value]));
at("section").value = sections.length - 1;
showSection(sections[sections.length - 1]);
