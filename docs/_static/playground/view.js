// The page: what it shows, and what a visitor does. Numbers come from model, losses and guide.
import * as tf from "./made/tf.js";
import { features, forward, head, read, remember, restore, start } from "./model.js";
import { LOSSES, epg, resize } from "./losses.js";
import { STEPS, evaluate, guide, mapsOf } from "./guide.js";
import { blank, paint, picture, watch } from "./draw.js";
import { teach } from "./teach.js";

const MADE = new URL("./made/", import.meta.url);
const CHOICES = ["loss", "lambda", "class"];
const at = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)} %`;
const state = { scene: 0, class: 0, box: [], loss: "energy", lambda: 1, guided: [] };
const shown = {}; // the numbers on the page, by the ids of their elements
const kept = []; // the network before each guidance
let data, net, found, more, others, grey, map, taught, busy = true;

/** What the page shows, under the ids of its elements. */
const report = () => ({ ...state, class: data?.classes[state.class], steps: STEPS * state.guided.length, busy, ...shown });

const number = (id, value, text = percent(value)) => ([shown[id], at(id).textContent] = [value, text]);

/** Draws the map and the box, and says how much of the map is inside. */
function draw() {
  number("epg", epg(map, data.side, state.box));
  paint(at("box"), grey, map, state.box);
  const [x1, y1, x2, y2] = state.box;
  at("box").setAttribute("aria-label", `Scene with the network's map, and a box: left ${x1}, top ${y1}, width ${x2 - x1}, `
    + `height ${y2 - y1} of ${data.side} pixels. Arrow keys move the box, with shift they resize it.`);
}

/** Asks the network with the object and without it, and shows both answers and the map. */
function ask() {
  const c = state.class, [answers, maps] = tf.tidy(() => {
    const { logits, maps } = forward(net, features(found.scenes, 2 * state.scene, 2));
    return [tf.sigmoid(logits).arraySync(), mapsOf(maps, [c, c]).arraySync()];
  });
  map = resize(maps[0], data.side);
  ["probability", "probability-removed"].forEach((id, k) => number(id, answers[k][c]));
  draw();
  return answers;
}

/** Shows the choices, and says what the network answers. */
async function refresh() {
  const c = state.class, name = data.classes[c], [here, gone] = ask();
  for (const choice of CHOICES) at(choice).value = state[choice];
  for (const place of document.querySelectorAll(".class-name")) place.textContent = name;
  at("classes").innerHTML = data.classes.map((name, k) => `<li><span>${name}</span>
    <span><span class="bar" style="width: ${100 * here[k]}%"></span></span><span>${percent(here[k])}</span></li>`).join("");
  const why = here[c] < 0.5 ? "" : gone[c] < 0.5 ? " It needs the object." : " It looks at the background!";
  const next = state.guided.length ? " Other scenes are below." : " Press Guide, and its reasons move into the box.";
  at("story").textContent = `The network says “${name}”: ${percent(here[c])}. With the object removed: ${percent(gone[c])}.${why}${next}`;
}

/** F1 and EPG on the other scenes, before and now. */
function compare(now) {
  for (const [id, key] of [["f1-others", "f1"], ["epg-others", "epg"]]) {
    const old = data.before[key].toFixed(1);
    number(id, now?.[key] ?? data.before[key], now ? `${old} → ${now[key].toFixed(1)}` : old);
  }
}

function ready(yes) {
  busy = !yes;
  for (const id of ["guide", ...CHOICES]) at(id).disabled = busy;
  for (const id of ["undo", "reset"]) at(id).disabled = busy || !state.guided.length;
  at("guide").textContent = state.guided.length ? "Guide again" : "Guide";
}

/** The state in the address, so that it can be shared. */
function save() {
  const text = (one) => [one.scene, one.class, one.loss, one.lambda, ...one.box].join();
  const words = new URLSearchParams([["now", text(state)], ...state.guided.map((one) => ["guided", text(one)])]);
  history.replaceState(null, "", `?${words}`);
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
  await refresh();
}

/** Twenty steps with the box of `one`, the answers and the map shown after each. */
async function press(one) {
  ready(false);
  kept.push(remember(net));
  state.guided.push(one);
  const x = features(found.scenes, 2 * one.scene, 1), { label } = data.scenes[one.scene];
  await guide(net, x, { ...one, c: one.class, weight: one.lambda, label, side: data.side }, (step) => {
    at("progress").value = step + 1;
    at("guide").textContent = `Step ${step + 1}`;
    ask();
  });
  x.dispose();
}

/** After the network has changed: ask it again, here and on the other scenes. */
async function changed() {
  await refresh();
  save();
  for (const id of ["f1-others", "epg-others"]) at(id).textContent += " …";
  compare(state.guided.length ? await evaluate(net, await others) : null);
  ready(true);
}

async function back(count) {
  ready(false);
  state.guided.splice(-count);
  const gone = kept.splice(-count);
  restore(net, gone[0]);
  tf.dispose(gone);
  at("progress").value = 0;
  await changed();
}

/** What is shown, as a picture to save. */
function keep() {
  const canvas = blank(900, 500), pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, 900, 500);
  [["box", 10, 440], ["with", 460, 210], ["without", 680, 210]].forEach(([id, x, size]) => pen.drawImage(at(id), x, 10, size, size));
  const [p, q, share] = ["probability", "probability-removed", "epg"].map((id) => percent(shown[id]));
  [pen.fillStyle, pen.font] = ["black", "19px sans-serif"];
  [`${data.classes[state.class]}: ${p}, object removed: ${q}`, `reasons inside the box (EPG): ${share}`,
    `${report().steps} steps, loss ${state.loss}, λ = ${state.lambda}`, `on ${data.others.labels.length} other scenes:`,
    `F1 ${at("f1-others").textContent}, EPG ${at("epg-others").textContent}`].forEach((line, k) => pen.fillText(line, 465, 255 + 34 * k));
  Object.assign(document.createElement("a"), { href: canvas.toDataURL(), download: "guided.png" }).click();
}

function listen() {
  at("guide").onclick = async () => {
    const { scene, class: c, loss, lambda, box } = state;
    await press({ scene, class: c, loss, lambda, box: [...box] });
    await changed();
  };
  [at("undo").onclick, at("reset").onclick, at("download").onclick] = [() => back(1), () => back(kept.length), keep];
  at("share").onclick = () => {
    save();
    (navigator.clipboard?.writeText(location.href) ?? Promise.reject()).then(() => (at("share").textContent = "Copied"),
      () => window.prompt("The address of this state", location.href));
  };
  for (const name of CHOICES) at(name).onchange = () => {
    state[name] = name === "loss" ? at(name).value : Number(at(name).value);
    refresh().then(save);
  };
  watch(at("box"), data.side, () => state.box, (next, last) => {
    if (busy) return;
    state.box = next;
    draw();
    if (last) save();
  });
  const tabs = ["tab-guide", "tab-teach"].map(at);
  const open = (chosen) => {
    tabs.forEach((tab, k) => {
      tab.setAttribute("aria-selected", k === chosen);
      tab.tabIndex = k === chosen ? 0 : -1;
      at(tab.getAttribute("aria-controls")).hidden = k !== chosen;
    });
    if (chosen) taught ??= teach({ data, found, more, others, made: MADE, shown }).catch(fail);
    tabs[chosen].focus();
  };
  tabs.forEach((tab, k) => {
    tab.onclick = () => open(k);
    tab.onkeydown = ({ key }) => void (["ArrowLeft", "ArrowRight"].includes(key) && open(1 - k)); // false would keep the key
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
