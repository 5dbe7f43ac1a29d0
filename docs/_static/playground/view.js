// The page: what it shows, and what a visitor does. Numbers come from model, losses and guide.
import * as tf from "./made/tf.js";
import { features, forward, head, read, start, variables } from "./model.js";
import { LOSSES, epg, inside, resize } from "./losses.js";
import { STEPS, evaluate, guide, mapsOf } from "./guide.js";
import { at, blank, fitted, overlap, paint, percent, picture, wait, watch } from "./draw.js";
import { teach } from "./teach.js";

const MADE = new URL("./made/", import.meta.url);
const CHOICES = ["loss", "lambda", "class"], OTHERS = ["f1-others", "epg-others"];
const state = { scene: null, class: 0, box: [], loss: "energy", lambda: 1 };
const shown = {}; // the numbers on the page, by the ids of their elements
const past = []; // what Undo takes back: a box that was on a scene, or a guidance, with the network and the numbers before
let data, net, found, more, others, grey, map, begun, boxes, taught, doing = "Loading …", step = 0;

const guided = () => past.filter((one) => one.net);
const last = () => guided().filter((one) => one.scene === state.scene).at(-1);

/** What the page shows, under the ids of its elements. */
const report = () => ({
  ...state, class: data?.classes[state.class], steps: STEPS * guided().length,
  guided: guided().map(({ net, was, ...one }) => ({ ...one, class: data.classes[one.class] })),
  busy: document.querySelector(".playground [aria-busy=true]") !== null, ...shown,
});
const number = (id, value, text = percent(value)) => ([shown[id], at(id).textContent] = [value, text]);
const since = (old, now, text = percent) => (guided().length ? `${text(old)} → ` : "") + text(now);

/** What the network answers, why, and what to do next. */
function story() {
  const { label, box } = data.scenes[state.scene], [name, scene] = [state.class, label].map((c) => data.classes[c]), one = last();
  const [here, gone, most] = [shown.probability, shown["probability-removed"], shown.epg >= 50];
  const missed = (drawn) => overlap(drawn, box) < 0.25, told = one?.lambda && missed(one.box);
  const [old, f1] = [data.before.f1, shown["f1-others"]].map((value) => value.toFixed(1)), was = one?.was ?? shown;
  const helped = shown.epg > was.epg + 1 || (here < 50 ? here > was.probability + 1 : gone < was["probability-removed"] - 1);
  const blue = inside(map, data.side, state.box).reduce((sum, value) => sum + value, 0) < 0
    ? "The map is blue in the box, and the share counts red only." : "";
  const why = here < 50 ? blue : gone < 50 ? `It needs the object${most ? "" : ", yet most reasons lie outside the box"}.`
    : most ? "Most reasons lie in the box, yet it can do without the object." : "It looks at the background!";
  const [, ...words] = [
    [state.lambda && name !== scene, `The scene shows “${scene}”: the box would teach “${name}” in the wrong place.`, blue,
      `Choose the class “${scene}”.`],
    [!state.lambda, why, "With λ = 0, Guide ignores the box."],
    [missed(state.box), `Your box misses the object: ${told ? "the network was told" : "Guide would tell the network"} to look there.`,
      told ? "Guidance is only as good as its boxes. Undo it." : "Draw it around the object."],
    [old - f1 > 5, why, `The price: F1 on other scenes fell from ${old} to ${f1} %. Each press learns from one scene alone.`,
      "Many images do not cost this (lesson 04). Undo, or Reset."],
    [!one, why, guided().length ? "You have not guided this scene yet: press Guide." : "Press Guide, and its reasons move into the box."],
    [[one?.class, one?.box].join() !== [state.class, state.box].join(), why, "This box is new: press Guide again."],
    [here >= 50 && (gone < 50 || most), why, "Guide other scenes, too."],
    [true, why, helped ? "Press Guide again." : "This press did not help: Undo, or Reset."],
  ].find(([holds]) => holds);
  const answer = here < 50 ? `gives “${name}” ${percent(here)}` : `says “${name}”: ${percent(here)}`;
  return `The network ${answer}. Without the object: ${percent(gone)}. ${words.join(" ")}`;
}

/** Draws the map and the box, and tells what they say. */
function draw() {
  const [old, now] = [begun, map].map((one) => 100 * epg(one, data.side, state.box));
  number("epg", now, since(old, now));
  paint(at("box"), grey, map, state.box);
  const [x1, y1, x2, y2] = state.box, words = doing || story();
  at("box").setAttribute("aria-label", `Scene with the network's map, and a box: left ${x1}, top ${y1}, width ${x2 - x1}, `
    + `height ${y2 - y1} of ${data.side} pixels. Arrow keys move the box, Shift and arrow keys size it.`);
  if (at("story").textContent !== words) at("story").textContent = words; // else it would be read aloud at every step
  at("guide").textContent = step ? `Step ${step}` : last() ? "Guide again" : "Guide";
  at("progress").value = step || (last() ? STEPS : 0);
  if (!past.length && ["undo", "reset"].includes(document.activeElement.id)) at("guide").focus(); // `disabled` would lose it
  at("undo").disabled = at("reset").disabled = !past.length;
}

/** Asks the network with the object and without it, and shows the choices, both answers and the map. */
function ask() {
  const c = state.class, [answers, maps] = tf.tidy(() => {
    const x = features(found.scenes, 2 * state.scene, 2);
    const [now, old] = [net, guided()[0]?.net ?? net].map((one) => forward(one, x));
    return [tf.sigmoid(now.logits).mul(100).arraySync(), [now, old].map(({ maps }) => mapsOf(maps, [c, c]).arraySync()[0])];
  });
  [map, begun] = maps.map((one) => resize(one, data.side));
  ["probability", "probability-removed"].forEach((id, k) => number(id, answers[k][c]));
  for (const choice of CHOICES) at(choice).value = state[choice];
  for (const place of document.querySelectorAll(".class-name")) place.textContent = data.classes[c];
  at("classes").innerHTML = data.classes.map((name, k) => `<li><span>${name}</span><span><span class="bar"
    style="width: ${answers[0][k]}%"></span></span><span>${percent(answers[0][k])}</span></li>`).join("");
  draw();
}

/** Says what it does, and holds the controls back; without words it is ready. */
function ready(words = "") {
  [doing, step] = [words, 0];
  wait("panel-guide", doing !== "");
  for (const choice of CHOICES) at(choice).disabled = doing !== "";
  for (const id of doing ? OTHERS : []) at(id).textContent = at(id).textContent.replace(/ → .*|$/, " → …");
  draw();
}

/** The state in the address, so that it can be shared. */
function save() {
  const text = (one) => [one.scene, one.class, one.loss, one.lambda, ...one.box].join();
  const words = new URLSearchParams([["now", text(state)], ...guided().map((one) => ["guided", text(one)])]);
  history.replaceState(null, "", `?${words}`);
  at("share").textContent = "Copy a link";
}

/** One entry of the address, or null where it is wrong. */
function parse(text) {
  const [scene, c, loss, lambda, ...corners] = text.split(","), box = fitted(...corners.map(Number), data.side);
  const right = data.scenes[scene] && data.classes[c] && Object.hasOwn(LOSSES, loss) && lambda >= 0 && box.join() === corners.join();
  return right ? { scene: Number(scene), class: Number(c), loss, lambda: Number(lambda), box } : null;
}

async function choose(scene, rest = {}) {
  const { label, text } = data.scenes[scene];
  Object.assign(state, scene === state.scene ? {} : { scene, class: label }, { box: boxes[scene] }, rest);
  if (state.box.join() !== boxes[scene].join()) past.push({ scene, box: boxes[scene] });
  boxes[scene] = state.box;
  [at("with").src, at("without").src] = ["", "-without"].map((end) => new URL(`${scene}${end}.webp`, MADE));
  [at("with").alt, at("without").alt] = [text, `${text}, the object removed`];
  for (const button of at("scenes").children) button.setAttribute("aria-pressed", button.id === `scene-${scene}`);
  const photo = await picture(at("with").src);
  if (scene !== state.scene) return; // another one was chosen meanwhile
  grey = photo;
  ask();
}

/** Twenty steps with what is chosen, the answers and the map shown after each. */
async function press() {
  const x = features(found.scenes, 2 * state.scene, 1), { label } = data.scenes[state.scene];
  ready("Guiding …");
  past.push({ ...state, net, was: { ...shown } });
  net = head(net, "");
  await guide(net, x, { ...state, c: state.class, weight: state.lambda, label, side: data.side }, (done) => {
    step = done + 1;
    ask();
  });
  x.dispose();
}

/** After the network has changed: asks it again, here and on the other scenes. */
async function measure() {
  ask();
  if (guided().length) ready("Measuring on other scenes …");
  const { before } = data, now = guided().length ? await evaluate(net, await others) : before;
  number("f1-others", now.f1, since(before.f1, now.f1, (f1) => `${f1.toFixed(1)} %`));
  number("epg-others", now.epg, since(before.epg, now.epg));
  ready();
}

/** Takes back what is past: the last, where it was done, or all. */
async function back(all) {
  const gone = past.splice(all ? 0 : -1), [old, ...later] = [...gone.map((one) => one.net), net].filter(Boolean);
  gone.reverse().forEach((one) => (boxes[one.scene] = one.box));
  net = old;
  later.forEach((one) => tf.dispose(variables(one)));
  if (later.length) ready("Going back …");
  await choose(all ? state.scene : gone[0].scene);
  save();
  if (later.length) await measure();
}

/** What is shown, as a picture to save. */
function keep() {
  const canvas = blank(900, 500), pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, 900, 500);
  [["box", 10, 440], ["with", 460, 210], ["without", 680, 210]].forEach(([id, x, size]) => pen.drawImage(at(id), x, 10, size, size));
  const rows = [...at("panel-guide").querySelectorAll("figcaption, dl > div")].map((one) => one.textContent.replace(/\s+/g, " "));
  [pen.fillStyle, pen.font] = ["black", "19px sans-serif"];
  [...rows, `${STEPS * guided().length} steps, loss ${state.loss}, λ = ${state.lambda}`].forEach((row, k) =>
    pen.fillText(row, 465, 255 + 34 * k));
  Object.assign(document.createElement("a"), { href: canvas.toDataURL(), download: "guided.png" }).click();
}

function listen() {
  const stop = (event) => event.target.closest("[aria-disabled=true]") && event.stopPropagation();
  at("live").addEventListener("click", stop, true); // before a button gets it
  at("guide").onclick = () => press().then(save).then(measure);
  watch(at("box"), data.side, () => state.box, (box, end) => {
    if (doing) return;
    state.box = box;
    draw();
    if (end) choose(state.scene, { box }).then(save);
  });
  [at("undo").onclick, at("reset").onclick, at("download").onclick] = [() => back(false), () => back(true), keep];
  at("share").onclick = () => {
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
        [one.tabIndex, at(one.getAttribute("aria-controls")).hidden] = [one === tab ? 0 : -1, one !== tab];
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
    choose(k).then(save).then(() => at("story").scrollIntoView({ block: "nearest" }))));
  for (const place of document.querySelectorAll(".playground .count")) place.textContent = data.others.labels.length;
}

async function main() {
  const words = new URLSearchParams(location.search);
  await start(words.get("backend"));
  found = await read(new URL("start.safetensors", MADE));
  data = await (await fetch(new URL("scenes.json", MADE))).json();
  net = head(found, "");
  boxes = data.scenes.map(({ box }) => box);
  list();
  listen();
  wait("panel-guide", true);
  const here = parse(words.get("now") ?? "");
  [at("live").hidden, at("fallback").hidden] = [false, true];
  more = read(new URL("more.safetensors", MADE));
  others = more.then((all) => ({ ...data.others, side: data.side, x: all.others }));
  others.catch(fail); // also where nobody waits for them
  for (const one of words.getAll("guided").map(parse).filter(Boolean)) {
    await choose(one.scene, one);
    await press();
  }
  await choose(here?.scene ?? 0, here ?? {});
  at("scenes").scrollLeft = at(`scene-${state.scene}`).offsetLeft - at("scenes").offsetLeft;
  await measure();
}

function fail(error) {
  console.error(error);
  [at("live").hidden, at("fallback").hidden] = [true, false];
  at("trouble").textContent = `The playground stopped here: ${error.message}. The picture shows what it does. Notebook 12 does it with Python.`;
}

window.playground = { state: report, tf };
main().catch(fail);
