// The page: what it shows, and what a visitor does. Numbers come from model, losses and guide.
import * as tf from "./made/tf.js";
import { features, forward, head, read, remember, restore, start } from "./model.js";
import { LOSSES, epg, resize } from "./losses.js";
import { STEPS, evaluate, guide, mapsOf } from "./guide.js";
import { blank, paint, picture, watch } from "./draw.js";
import { teach } from "./teach.js";

const MADE = new URL("./made/", import.meta.url);
const CHOICES = ["loss", "lambda", "class"], OTHERS = ["f1-others", "epg-others"];
const at = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)} %`;
const state = { scene: 0, class: 0, box: [], loss: "energy", lambda: 1, guided: [] };
const shown = {}; // the numbers on the page, by the ids of their elements
const kept = []; // the network before each guidance
let data, net, found, more, others, grey, map, taught, busy = true, step = 0;

/** What the page shows, under the ids of its elements. */
const report = () => ({ ...state, class: data?.classes[state.class], steps: STEPS * state.guided.length, busy, ...shown });
const number = (id, value, text = percent(value)) => ([shown[id], at(id).textContent] = [value, text]);

/** The last guidance on this scene, if any. Undo brings its box back, or else the scene's own. */
const last = () => state.guided.filter((one) => one.scene === state.scene).at(-1);
const home = () => (last() ?? data.scenes[state.scene]).box;
const moved = () => state.box.join() !== home().join();

/** What the network answers, why, and what to do next. */
function story() {
  const name = data.classes[state.class], scene = data.classes[data.scenes[state.scene].label];
  const [here, gone, inside] = [shown.probability, shown["probability-removed"], shown.epg >= 0.5];
  let why = "", next = "";
  if (here >= 0.5 && gone < 0.5) why = "It needs the object.";
  else if (here >= 0.5) why = inside ? "Most reasons lie in the box, yet it can do without the object." : "It looks at the background!";
  if (name !== scene) next = `The scene shows “${scene}”.`;
  else if (!state.lambda) next = "With λ = 0, Guide ignores the box.";
  else if (last()) next = here >= 0.5 && (gone < 0.5 || inside) ? "Guide other scenes, too." : "Press Guide again.";
  else next = kept.length ? "You have not guided this scene yet: press Guide." : "Press Guide, and its reasons move into the box.";
  const answer = here < 0.5 ? `gives “${name}” ${percent(here)}` : `says “${name}”: ${percent(here)}`;
  return `The network ${answer}. Without the object: ${percent(gone)}. ${why} ${next}`;
}

/** Draws the map and the box, and tells what they say. */
function draw() {
  number("epg", epg(map, data.side, state.box));
  paint(at("box"), grey, map, state.box);
  const [x1, y1, x2, y2] = state.box, words = step ? "Guiding …" : story();
  at("box").setAttribute("aria-label", `Scene with the network's map, and a box: left ${x1}, top ${y1}, width ${x2 - x1}, `
    + `height ${y2 - y1} of ${data.side} pixels. Arrow keys move the box, Shift and arrow keys size it.`);
  if (at("story").textContent !== words) at("story").textContent = words; // else it would be read aloud at every step
  at("guide").textContent = step ? `Step ${step}` : last() ? "Guide again" : "Guide";
  [at("undo").disabled, at("reset").disabled] = [!moved() && !kept.length, !kept.length];
  if (document.activeElement.disabled) at("guide").focus();
}

/** Asks the network with the object and without it, and shows the choices, both answers and the map. */
function ask() {
  const c = state.class, [answers, maps] = tf.tidy(() => {
    const { logits, maps } = forward(net, features(found.scenes, 2 * state.scene, 2));
    return [tf.sigmoid(logits).arraySync(), mapsOf(maps, [c, c]).arraySync()];
  });
  map = resize(maps[0], data.side);
  ["probability", "probability-removed"].forEach((id, k) => number(id, answers[k][c]));
  for (const choice of CHOICES) at(choice).value = state[choice];
  for (const place of document.querySelectorAll(".class-name")) place.textContent = data.classes[c];
  at("classes").innerHTML = data.classes.map((name, k) => `<li><span>${name}</span><span><span class="bar"
    style="width: ${100 * answers[0][k]}%"></span></span><span>${percent(answers[0][k])}</span></li>`).join("");
  draw();
}

/** F1 and EPG on the other scenes, before and now. */
function compare(now) {
  const texts = { f1: (f1) => f1.toFixed(1), epg: (epg) => percent(epg / 100) };
  for (const [key, text] of Object.entries(texts)) {
    const old = text(data.before[key]);
    number(`${key}-others`, now?.[key] ?? data.before[key], now ? `${old} → ${text(now[key])}` : old);
  }
}

function ready(yes) {
  busy = !yes;
  at("panel-guide").setAttribute("aria-busy", busy); // `disabled` would take the focus from a button
  for (const choice of CHOICES) at(choice).disabled = busy;
  for (const id of busy ? OTHERS : []) at(id).textContent = at(id).textContent.replace(/ → .*|$/, " → …");
}

/** The state in the address, so that it can be shared. */
function save() {
  const text = (one) => [one.scene, one.class, one.loss, one.lambda, ...one.box].join();
  const words = new URLSearchParams([["now", text(state)], ...state.guided.map((one) => ["guided", text(one)])]);
  history.replaceState(null, "", `?${words}`);
  at("share").textContent = "Copy a link";
}

/** What the address holds; what it says wrongly is left out. */
function opened() {
  const words = new URLSearchParams(location.search);
  const parse = (text) => {
    const [scene, c, loss, lambda, ...corners] = text.split(","), box = corners.map(Number), [x1, y1, x2, y2] = box;
    const inside = box.length === 4 && x1 >= 0 && y1 >= 0 && x1 < x2 && y1 < y2 && x2 <= data.side && y2 <= data.side;
    const right = inside && data.scenes[scene] && data.classes[c] && Object.hasOwn(LOSSES, loss) && lambda >= 0;
    return right ? { scene: Number(scene), class: Number(c), loss, lambda: Number(lambda), box } : null;
  };
  return { here: parse(words.get("now") ?? ""), guided: words.getAll("guided").map(parse).filter(Boolean) };
}

async function choose(scene, rest = {}) {
  const { label, box, text } = data.scenes[scene];
  Object.assign(state, { scene, class: label, box: [...box] }, rest);
  [at("with").src, at("without").src] = ["", "-without"].map((end) => new URL(`${scene}${end}.webp`, MADE));
  [at("with").alt, at("without").alt] = [text, `${text}, the object removed`];
  for (const button of at("scenes").children) button.setAttribute("aria-pressed", button.id === `scene-${scene}`);
  const photo = await picture(at("with").src);
  if (scene !== state.scene) return; // another one was chosen meanwhile
  grey = photo;
  ask();
}

/** Twenty steps with the box of `one`, the answers and the map shown after each. */
async function press(one) {
  ready(false);
  kept.push(remember(net));
  state.guided.push(one);
  const x = features(found.scenes, 2 * one.scene, 1), { label } = data.scenes[one.scene];
  await guide(net, x, { ...one, c: one.class, weight: one.lambda, label, side: data.side }, (done) => {
    step = at("progress").value = done + 1;
    ask();
  });
  step = 0;
  x.dispose();
}

/** After the network has changed: ask it again, here and on the other scenes. */
async function changed() {
  ask();
  save();
  compare(state.guided.length ? await evaluate(net, await others) : null);
  ready(true);
}

async function back(count) {
  ready(false);
  state.guided.splice(-count);
  const gone = kept.splice(-count);
  restore(net, gone[0]);
  tf.dispose(gone);
  at("progress").value = kept.length && STEPS;
  await changed();
}

/** What is shown, as a picture to save. */
function keep() {
  const canvas = blank(900, 500), pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, 900, 500);
  [["box", 10, 440], ["with", 460, 210], ["without", 680, 210]].forEach(([id, x, size]) => pen.drawImage(at(id), x, 10, size, size));
  const [p, q, share, f1, epg] = ["probability", "probability-removed", "epg", ...OTHERS].map((id) => at(id).textContent);
  [pen.fillStyle, pen.font] = ["black", "19px sans-serif"];
  [`${data.classes[state.class]}: ${p}, object removed: ${q}`, `reasons inside the box (EPG): ${share}`,
    `${report().steps} steps, loss ${state.loss}, λ = ${state.lambda}`, `on ${data.others.labels.length} other scenes:`,
    `F1 ${f1}, EPG ${epg}`].forEach((line, k) => pen.fillText(line, 465, 255 + 34 * k));
  Object.assign(document.createElement("a"), { href: canvas.toDataURL(), download: "guided.png" }).click();
}

function listen() {
  at("guide").onclick = async () => {
    if (busy) return;
    const { guided, ...now } = state;
    await press(now);
    await changed();
  };
  const place = (box, end) => {
    if (busy) return;
    state.box = [...box];
    draw();
    if (end) save();
  };
  watch(at("box"), data.side, () => state.box, place);
  at("undo").onclick = () => busy || (moved() ? place(home(), true) : back(1));
  [at("reset").onclick, at("download").onclick] = [() => busy || back(kept.length), keep];
  at("share").onclick = () => {
    save();
    (navigator.clipboard?.writeText(location.href) ?? Promise.reject()).then(() => (at("share").textContent = "Copied"),
      () => window.prompt("The address of this state", location.href));
    setTimeout(save, 3000); // the button is as before
  };
  for (const name of CHOICES) at(name).onchange = () => {
    state[name] = name === "loss" ? at(name).value : Number(at(name).value);
    ask();
    save();
  };
  const tabs = ["tab-guide", "tab-teach"].map(at);
  tabs.forEach((tab, k) => {
    tab.onclick = () => {
      for (const one of tabs) {
        one.setAttribute("aria-selected", one === tab);
        one.tabIndex = one === tab ? 0 : -1;
        at(one.getAttribute("aria-controls")).hidden = one !== tab;
      }
      if (k) taught ??= teach({ data, found, more, others, made: MADE, shown }).catch(fail);
      tab.focus();
    };
    tab.onkeydown = ({ key }) => void (/Arrow(Left|Right)/.test(key) && tabs[1 - k].click()); // false would keep the key
  });
}

function list() {
  at("class").innerHTML = data.classes.map((name, c) => `<option value="${c}">${name}</option>`).join("");
  at("scenes").innerHTML = data.scenes.map(({ text }, k) =>
    `<button id="scene-${k}"><img src="${new URL(`${k}.webp`, MADE)}" alt="${text}" width="64" height="64"></button>`).join("");
  [...at("scenes").children].forEach((button, k) => (button.onclick = () =>
    busy || choose(k).then(save).then(() => at("story").scrollIntoView({ block: "nearest" }))));
  for (const place of document.querySelectorAll(".playground .count")) place.textContent = data.others.labels.length;
}

async function main() {
  await start(new URLSearchParams(location.search).get("backend"));
  found = await read(new URL("start.safetensors", MADE));
  data = await (await fetch(new URL("scenes.json", MADE))).json();
  net = head(found, "");
  list();
  listen();
  const { here, guided } = opened();
  [at("live").hidden, at("fallback").hidden] = [false, true];
  await choose(here?.scene ?? 0, here ?? {});
  at("scenes").scrollLeft = at(`scene-${state.scene}`).offsetLeft - at("scenes").offsetLeft;
  compare();
  more = read(new URL("more.safetensors", MADE));
  others = more.then((all) => ({ ...data.others, side: data.side, x: all.others }));
  others.catch(fail); // also where nobody waits for them
  for (const one of guided) await press(one);
  await (guided.length ? changed() : ready(true));
}

function fail(error) {
  console.error(error);
  [at("live").hidden, at("fallback").hidden] = [true, false];
  at("trouble").textContent = `The playground stopped here: ${error.message}. The picture shows what it does. Notebook 12 does it with Python.`;
}

window.playground = { state: report, tf };
main().catch(fail);
