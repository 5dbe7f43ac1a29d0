// The page: what it shows, and what a visitor does. Numbers come from model, losses and guide.
import * as tf from "./made/tf.js";
import { features, forward, head, read, remember, restore, start } from "./model.js";
import { LOSSES, epg, masks, resize } from "./losses.js";
import { STEPS, evaluate, guide, mapsOf } from "./guide.js";
import { paint, picture, watch } from "./draw.js";
import { teach } from "./teach.js";

const MADE = new URL("./made/", import.meta.url);
const at = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)} %`;
const state = { scene: 0, class: 0, box: [], loss: "energy", lambda: 1, guided: [] };
const shown = {}; // the numbers on the page, by the ids of their elements
let data, net, found, more, others, grey, map, before, now, busy = true;
const kept = []; // the network before each guidance

/** What the page shows, under the ids of its elements. */
const report = () => ({ ...state, class: data?.classes[state.class], steps: STEPS * state.guided.length, busy, ...shown });

function number(id, value, text = percent(value)) {
  shown[id] = value;
  at(id).textContent = text;
}

/** Ask the network: probabilities with and without the object, map and EPG. Then draw. */
async function look() {
  const [logits, maps, share] = tf.tidy(() => {
    const { logits, maps } = forward(net, features(found.scenes, found, 2 * state.scene, 2));
    const chosen = mapsOf(maps, [state.class, state.class]).slice([0, 0, 0], [1, -1, -1]);
    return [logits, resize(chosen, data.side), epg(chosen, masks([state.box], data.side))];
  });
  const [here, gone] = await tf.sigmoid(logits).array();
  map = await maps.data();
  number("probability", here[state.class]);
  number("probability-removed", gone[state.class]);
  number("epg", (await share.data())[0]);
  tf.dispose([logits, maps, share]);
  bars(here);
  draw();
}

function bars(probabilities) {
  const row = (name, c) => `<li><span>${name}</span><span><span class="bar" style="width: ${100 * probabilities[c]}%"></span></span>`
    + `<span>${percent(probabilities[c])}</span></li>`;
  at("classes").innerHTML = data.classes.map(row).join("");
}

function draw() {
  paint(at("box"), grey, map, state.box);
  const [x1, y1, x2, y2] = state.box;
  at("box").setAttribute("aria-label", `Scene with the network's map, and a box: left ${x1}, top ${y1}, width ${x2 - x1}, `
    + `height ${y2 - y1} of ${data.side} pixels. Arrow keys move the box, with shift they resize it.`);
}

function tell() {
  const name = data.classes[state.class], p = shown.probability, q = shown["probability-removed"];
  const answers = `The network says “${name}”: ${percent(p)}. With the object removed: ${percent(q)}.`;
  const why = p < 0.5 ? "" : q < 0.5 ? " It needs the object." : " It looks at the background!";
  const next = state.guided.length ? " Other scenes are below." : " Press Guide, and its reasons move into the box.";
  at("story").textContent = answers + why + next;
}

/** F1 and EPG on the other scenes, before and now. */
function compare() {
  for (const [id, key] of [["f1-others", "f1"], ["epg-others", "epg"]]) {
    const [old, value] = [data.before[key], now?.[key] ?? data.before[key]];
    number(id, value, now ? `${old.toFixed(1)} → ${value.toFixed(1)}` : old.toFixed(1));
  }
}

function ready(yes) {
  busy = !yes;
  for (const id of ["guide", "loss", "lambda", "class"]) at(id).disabled = busy;
  for (const id of ["undo", "reset"]) at(id).disabled = busy || !state.guided.length;
  at("guide").textContent = state.guided.length ? "Guide again" : "Guide";
}

/** The state in the address, so that it can be shared. */
function save() {
  const words = new URLSearchParams({ scene: state.scene, class: state.class, box: state.box, loss: state.loss, lambda: state.lambda });
  for (const one of state.guided) words.append("guided", [one.scene, one.class, one.loss, one.lambda, ...one.box]);
  history.replaceState(null, "", `?${words}`);
}

/** What an address holds; what it says wrongly is left out. */
function opened() {
  const words = new URLSearchParams(location.search);
  const right = (one) => data.scenes[one.scene] && data.classes[one.class] && LOSSES[one.loss] && one.lambda >= 0
    && one.box.length === 4 && one.box.every((value) => value >= 0 && value <= data.side)
    && one.box[2] > one.box[0] && one.box[3] > one.box[1];
  const parse = ([scene, c, loss, lambda, ...corners]) =>
    ({ scene: +scene, class: +c, loss, lambda: +lambda, box: corners.map(Number) });
  const here = ["scene", "class", "loss", "lambda"].map((name) => words.get(name));
  const now = parse([...here, ...(words.get("box") ?? "").split(",")]);
  return { now: right(now) ? now : null, guided: words.getAll("guided").map((text) => parse(text.split(","))).filter(right) };
}

async function choose(scene, rest = {}) {
  const { label, box } = data.scenes[scene];
  Object.assign(state, { scene, class: label, box: [...box] }, rest);
  [at("with").src, at("without").src] = ["", "-without"].map((end) => new URL(`${scene}${end}.webp`, MADE));
  grey = await picture(at("with").src);
  if (scene !== state.scene) return; // another one was chosen meanwhile
  at("with").alt = data.scenes[scene].text;
  at("without").alt = "The same scene without the object";
  for (const button of at("scenes").children) button.setAttribute("aria-pressed", button.id === `scene-${scene}`);
  await refresh();
}

async function refresh() {
  for (const name of ["class", "loss", "lambda"]) at(name).value = state[name];
  for (const place of document.querySelectorAll(".class-name")) place.textContent = data.classes[state.class];
  await look();
  tell();
}

/** Twenty steps with the box of `one`, the map drawn at each. */
async function press(one) {
  ready(false);
  kept.push(remember(net));
  state.guided.push(one);
  const x = features(found.scenes, found, 2 * one.scene, 1);
  await guide(net, x, { ...one, label: data.scenes[one.scene].label, c: one.class, weight: one.lambda, side: data.side },
    async (step, seen) => {
      at("progress").value = step + 1;
      at("guide").textContent = `Step ${step + 1}`;
      if (one.scene !== state.scene || one.class !== state.class) return; // of a link's history
      map = tf.tidy(() => resize(seen.maps, data.side).dataSync());
      number("probability", tf.tidy(() => tf.sigmoid(seen.logits).dataSync())[one.class]);
      draw();
    });
  x.dispose();
}

/** After the network has changed: ask it again, here and on the other scenes. */
async function changed() {
  await refresh();
  save();
  for (const id of ["f1-others", "epg-others"]) at(id).textContent += " …";
  now = state.guided.length ? await evaluate(net, await others) : null;
  compare();
  ready(true);
}

async function back(count) {
  ready(false);
  const gone = kept.splice(kept.length - count);
  restore(net, gone[0]);
  tf.dispose(gone);
  state.guided.splice(state.guided.length - count);
  at("progress").value = 0;
  await changed();
}

/** What is shown, as a picture to save. */
function keep() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 900, height: 500 }), pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, 900, 500);
  pen.drawImage(at("box"), 10, 10, 440, 440);
  pen.drawImage(at("with"), 460, 10, 210, 210);
  pen.drawImage(at("without"), 680, 10, 210, 210);
  pen.fillStyle = "black";
  pen.font = "19px sans-serif";
  const [p, q, share] = ["probability", "probability-removed", "epg"].map((id) => percent(shown[id]));
  [`${data.classes[state.class]}: ${p}, object removed: ${q}`, `reasons inside the box (EPG): ${share}`,
    `${report().steps} steps, loss ${state.loss}, λ = ${state.lambda}`, `on ${data.others.labels.length} other scenes:`,
    `F1 ${at("f1-others").textContent}, EPG ${at("epg-others").textContent}`].forEach((line, k) => pen.fillText(line, 465, 255 + 34 * k));
  Object.assign(document.createElement("a"), { href: canvas.toDataURL(), download: "guided.png" }).click();
}

function listen() {
  at("guide").onclick = async () => {
    await press({ scene: state.scene, class: state.class, loss: state.loss, lambda: state.lambda, box: [...state.box] });
    await changed();
  };
  at("undo").onclick = () => back(1);
  at("reset").onclick = () => back(kept.length);
  at("download").onclick = keep;
  at("share").onclick = async () => {
    save();
    await navigator.clipboard.writeText(location.href).then(() => (at("share").textContent = "Copied"),
      () => window.prompt("The address of this state", location.href));
  };
  for (const name of ["loss", "lambda", "class"]) {
    at(name).onchange = async () => {
      state[name] = name === "loss" ? at(name).value : Number(at(name).value);
      await refresh();
      save();
    };
  }
  watch(at("box"), data.side, () => state.box, async (next, last) => {
    if (busy) return;
    state.box = next;
    draw();
    if (last) {
      await refresh();
      save();
    }
  });
  const tabs = [at("tab-guide"), at("tab-teach")];
  let taught = null;
  const open = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      at(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    if (chosen === tabs[1]) taught ??= teach({ data, found, more, others, made: MADE, shown }).catch(fail);
  };
  tabs.forEach((tab, k) => {
    tab.onclick = () => open(tab);
    tab.onkeydown = (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      open(tabs[1 - k]);
      tabs[1 - k].focus();
    };
  });
}

function list() {
  at("class").innerHTML = data.classes.map((name, c) => `<option value="${c}">${name}</option>`).join("");
  at("scenes").innerHTML = data.scenes.map(({ text }, k) =>
    `<button id="scene-${k}"><img src="${new URL(`${k}.webp`, MADE)}" alt="${text}" width="64" height="64"></button>`).join("");
  [...at("scenes").children].forEach((button, k) => (button.onclick = () => busy || choose(k).then(save)));
  for (const place of document.querySelectorAll(".playground .count")) place.textContent = data.others.labels.length;
}

async function main() {
  const wanted = new URLSearchParams(location.search).get("backend");
  [data, found] = await Promise.all([fetch(new URL("scenes.json", MADE)).then((answer) => answer.json()),
    start(wanted).then(() => read(new URL("start.safetensors", MADE)))]);
  net = head(found, "");
  list();
  listen();
  const { now: here, guided } = opened();
  at("live").hidden = false;
  at("fallback").hidden = true;
  await choose(here?.scene ?? 0, here ?? {});
  compare();
  more = read(new URL("more.safetensors", MADE));
  others = more.then((all) => ({ ...data.others, side: data.side, x: features(all.others, found) }));
  for (const one of guided) await press(one);
  await (guided.length ? changed() : ready(true));
}

function fail(error) {
  console.error(error);
  at("live").hidden = true;
  at("fallback").hidden = false;
  at("trouble").textContent = `The playground stopped here: ${error.message}. The picture shows what it does. Notebook 12 does it with Python.`;
}

window.playground = { state: report, tf };
main().catch(fail);
