"use strict";
const page = JSON.parse(document.getElementById("facts").textContent);
const clips = page.clips, places = new Map(clips.map((clip, i) => [clip.row.id, i]));
const at = id => document.getElementById(id);
const PACED = 20; // answers of which the pace is the mean
const BREAK = 60; // seconds at most that count for one clip
// Answers in the order in which they were given: {id, text_weight, sound_weight, skipped, seconds}.
let answers = recall(), current = -1, marks = {}, ready = null, shownAt = 0, kept = true;

function recall() {
  try {
    return JSON.parse(localStorage.getItem(page.name) || "[]").filter(answer => places.has(answer.id));
  } catch { return []; }
}

function keep() {
  try { localStorage.setItem(page.name, JSON.stringify(answers)); kept = true; } catch { kept = false; }
  say(kept ? "" : "This browser does not let the page keep answers: save them as a file before you close it.");
}

function say(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

// Which of the two questions a clip has: one without words, or without sound, has the other alone.
const asked = clip => ({ text: clip.row.text !== "", sound: clip.sound });
const questions = clip => Object.keys(asked(clip)).filter(name => asked(clip)[name]);

function unanswered(after) {
  const known = new Set(answers.map(answer => answer.id));
  const open = [...clips.keys()].filter(i => !known.has(clips[i].row.id) && i !== after);
  return open.find(i => i > after) ?? open[0] ?? -1;
}

// ------------------------------------------------------------------------------------------------------------- playing
// Clips are played from a copy in memory where that can be: not every browser plays them from the page itself, nor from
// a server that sends no parts of files. From a disk a browser plays files, and lets no script read them.
async function fill(video, url) {
  const copy = bytes => URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  if (url.startsWith("data:")) {
    video.src = copy(Uint8Array.from(atob(url.split(",")[1]), letter => letter.charCodeAt(0)));
  } else if (location.protocol === "file:") {
    video.src = url;
  } else {
    const answer = await fetch(url).catch(() => ({}));
    video.src = answer.ok ? copy(await answer.arrayBuffer()) : url;
  }
}

function player(i) {
  const { addresses } = clips[i], video = document.createElement("video");
  Object.assign(video, { loop: true, playsInline: true, preload: "auto", poster: addresses["-poster.jpg"] });
  fill(video, addresses[".mp4"]);
  video.addEventListener("error", () => { if (video.isConnected) complain(); });
  for (const name of ["play", "pause"]) video.addEventListener(name, () => at("stage").classList.toggle("stopped", video.paused));
  return video;
}

function complain() {
  say("This clip does not play. Is the folder of its media beside this page? Skip the clip, or mend that and load the page again.");
}

function drop(video) { // lets the browser free its decoder
  URL.revokeObjectURL(video.src);
  video.pause();
  video.removeAttribute("src");
  video.load();
}

function play() {
  const video = at("stage").firstChild, stopped = () => at("stage").classList.add("stopped");
  if (document.hidden) { stopped(); return; }
  if (video) video.autoplay = true; // for one that is still on its way
  video?.play().catch(error => { if (error.name === "NotAllowedError") stopped(); });
}

function turn() {
  const video = at("stage").firstChild;
  if (video?.paused) play(); else video?.pause();
}

function stage(i) {
  const old = at("stage").firstChild, next = i < 0 ? -1 : unanswered(i);
  const video = ready?.i === i ? ready.video : i < 0 ? null : player(i);
  if (ready && ready.i !== i) drop(ready.video);
  at("stage").replaceChildren(...(video ? [video] : []));
  if (old) drop(old);
  if (video?.error) complain();
  play();
  ready = next < 0 ? null : { i: next, video: player(next) };
}

// ------------------------------------------------------------------------------------------------------------- showing
function show(i) {
  current = i;
  marks = {};
  shownAt = performance.now();
  at("start").hidden = true;
  document.body.classList.toggle("finished", i < 0);
  at("end").hidden = i >= 0;
  at("text").hidden = i < 0;
  at("keys").hidden = false;
  if (i >= 0) {
    at("text").textContent = clips[i].row.text || "This clip has no text.";
    at("text").classList.toggle("none", !clips[i].row.text);
  }
  stage(i);
  count();
  draw();
}

function count() {
  const given = answers.length, paced = answers.filter(answer => answer.seconds > 0).slice(-PACED);
  const pace = paced.reduce((sum, answer) => sum + answer.seconds, 0) / paced.length;
  const left = Math.ceil((clips.length - given) * pace / 60);
  at("place").textContent = `${given} of ${clips.length}`;
  at("pace").textContent = paced.length ? `${pace.toFixed(1)} s each` + (given < clips.length ? `, about ${left} min to go` : "") : "";
  at("done").value = given;
  const share = name => {
    const judged = answers.filter(answer => name + "_weight" in answer);
    return `${judged.filter(answer => answer[name + "_weight"]).length} of ${judged.length}`;
  };
  at("fits").textContent = `Text fits: ${share("text")}. Sound fits: ${share("sound")}. Skipped: ${answers.filter(answer => answer.skipped).length}.`;
}

function draw() {
  const clip = clips[current], has = clip ? asked(clip) : {}, marked = Object.keys(has).filter(name => marks[name]);
  const button = key => document.querySelector(`[data-key=${key}]`);
  for (const [key, name] of [["t", "text"], ["s", "sound"]]) {
    button(key).disabled = !has[name];
    button(key).setAttribute("aria-pressed", Boolean(marks[name]));
  }
  button("s").firstChild.textContent = clip && !clip.sound ? "No sound" : "Sound fits";
  button("b").disabled = !(has.text && has.sound);
  button("n").disabled = button("k").disabled = !clip;
  button("n").firstChild.textContent = marked.length ? `Only the ${marked[0]}` : has.text && has.sound ? "Neither fits" : "Does not fit";
  button("u").disabled = !marked.length && !answers.length;
}

// ----------------------------------------------------------------------------------------------------------- answering
function answer(skipped) {
  const clip = clips[current], given = { id: clip.row.id, skipped, seconds: Math.min(BREAK, Math.round(performance.now() - shownAt) / 1000) };
  if (!skipped) for (const name of questions(clip)) given[name + "_weight"] = marks[name] ? 1 : 0;
  answers.push(given);
  keep();
  show(unanswered(current));
}

function mark(names, value) {
  for (const name of names) marks[name] = value ?? !marks[name];
  if (questions(clips[current]).every(name => marks[name])) answer(false); else draw();
}

function undo() {
  if (Object.values(marks).some(Boolean)) { marks = {}; draw(); return; }
  const last = answers.pop();
  if (!last) return;
  keep();
  show(places.get(last.id));
}

const actions = {
  t: () => mark(["text"]),
  s: () => mark(["sound"]),
  b: () => mark(["text", "sound"], true),
  n: () => answer(false),
  k: () => answer(true),
  u: undo,
  " ": turn,
};
const names = { ArrowRight: "k", ArrowLeft: "u", Backspace: "u" };

function begin() { show(unanswered(-1)); }

document.addEventListener("keydown", event => {
  const key = names[event.key] ?? event.key.toLowerCase(), onButton = event.target.closest("button, input, summary, label");
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !(key in actions) || (key === " " && onButton)) return;
  event.preventDefault();
  if (!at("start").hidden) begin();
  else if (key === " " || !document.querySelector(`[data-key=${key}]`).disabled) actions[key]();
});
at("begin").addEventListener("click", begin);
at("stage").addEventListener("click", turn);
document.querySelectorAll("[data-key]").forEach(button => button.addEventListener("click", event => {
  actions[button.dataset.key]();
  if (event.detail) button.blur(); // after a click the space bar is for the clip again
}));

// ------------------------------------------------------------------------------------------------------- files, tabs
function download(name, rows) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(rows.map(row => JSON.stringify(row) + "\n"), { type: "application/x-ndjson" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function trusted() {
  const given = new Map(answers.map(answer => [answer.id, answer]));
  return clips.filter(({ row }) => given.has(row.id) && !given.get(row.id).skipped).map(({ row }) => {
    const { id, skipped, seconds, ...weights } = given.get(row.id);
    return { ...row, ...weights };
  });
}

// Lines of either file; of a clip of this page that has an answer already, the line takes its place.
function read(text) {
  const rows = text.split("\n").filter(line => line.trim()).map(line => JSON.parse(line));
  const known = rows.filter(row => places.has(row.id) && (row.skipped || "text_weight" in row || "sound_weight" in row));
  const fields = ["id", "skipped", "seconds", "text_weight", "sound_weight"];
  const taken = new Map(known.map(row => [row.id, Object.fromEntries(fields.filter(f => f in row).map(f => [f, row[f]]))]));
  answers = [...answers.filter(answer => !taken.has(answer.id)), ...taken.values()];
  return `${known.length} answers are loaded` + (known.length < rows.length ? `, ${rows.length - known.length} lines are of other clips.` : ".");
}

function refresh() {
  if (at("start").hidden) show(unanswered(-1)); else count();
}

at("save").addEventListener("click", () => download(page.file, trusted()));
at("backup").addEventListener("click", () => download("answers.jsonl", answers));
at("load").addEventListener("change", async event => {
  const [file] = event.target.files;
  if (!file) return;
  let said;
  try {
    said = read(await file.text());
    keep();
    refresh();
  } catch (error) {
    said = `${file.name} cannot be loaded: expected the lines that this page saves (${error.message}).`;
  }
  event.target.value = "";
  say(said);
});
window.addEventListener("storage", event => { // another tab has this page too
  if (event.key !== page.name) return;
  answers = recall();
  refresh();
});
document.addEventListener("visibilitychange", () => { if (document.hidden) at("stage").firstChild?.pause(); });
window.addEventListener("beforeunload", event => { if (!kept) event.preventDefault(); });
if (answers.length) at("begin").firstChild.textContent = "Go on ";
count();
