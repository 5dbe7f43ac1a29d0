// The second tab: a teacher that was guided with all boxes, and a student that learns from it on a few scenes.
import * as tf from "./made/tf.js";
import { features, forward, head } from "./model.js";
import { cosine, resize } from "./losses.js";
import { distil, evaluate, mapsOf } from "./guide.js";
import { paint, picture } from "./draw.js";

const at = (id) => document.getElementById(id);
const NAMES = { kd: "KD", e2kd: "KD + e²KD" };

/** Sets up the tab. The student begins as the first tab's network did. */
export async function teach({ data, found, more, others, made, shown }) {
  const all = await more, teacher = head(all, "teacher."), known = await others;
  const x = tf.tidy(() => tf.concat(data.lessons.map((k) => features(found.scenes, found, 2 * k, 1))));
  const greys = await Promise.all(data.lessons.map((k) => picture(new URL(`${k}.webp`, made))));
  const goal = tf.tidy(() => forward(teacher, x)), tops = [...(await goal.logits.argMax(1).data())];
  const goals = mapsOf(goal.maps, tops), right = await evaluate(teacher, known);
  const rows = {};
  const paints = (row, maps) => tf.tidy(() => tf.unstack(resize(maps, data.side)))
    .forEach((one, k) => paint(rows[row][k], greys[k], one.dataSync()));

  const row = (title, cell) => {
    at("lessons").insertAdjacentHTML("beforeend", `<div class="title">${title}</div>${data.lessons.map(cell).join("")}`);
    return [...at("lessons").children].slice(-data.lessons.length);
  };
  const canvas = (whose) => (k) =>
    `<canvas width="${data.side}" height="${data.side}" role="img" aria-label="${whose} map of: ${data.scenes[k].text}"></canvas>`;
  row("the scenes", (k) => `<img src="${new URL(`${k}.webp`, made)}" alt="${data.scenes[k].text}">`);
  rows.teacher = row("what the teacher looks at", canvas("The teacher's"));
  rows.student = row("what the student looks at", canvas("The student's"));
  paints("teacher", goals);

  let student = head(found, ""), before = null;
  const see = async (maps) => {
    paints("student", maps);
    const alike = tf.tidy(() => cosine(maps, goals, data.side).mean()).dataSync()[0];
    shown.alike = alike;
    at("alike").textContent = (before ? `${before.alike.toFixed(2)} → ` : "") + alike.toFixed(2);
  };
  const measure = async () => {
    await see(tf.tidy(() => mapsOf(forward(student, x).maps, tops)));
    const found = await evaluate(student, known, right.tops);
    for (const [id, key] of [["agreement", "agreement"], ["f1-student", "f1"], ["epg-student", "epg"]]) {
      shown[id] = found[key];
      at(id).textContent = (before ? `${before[key].toFixed(1)} → ` : "") + found[key].toFixed(1);
    }
    return { ...found, alike: shown.alike };
  };
  const buttons = ["teach-kd", "teach-e2kd", "forget"].map(at);
  const fresh = () => {
    Object.values(student).forEach((tensor) => tensor instanceof tf.Variable && tensor.dispose());
    student = head(found, "");
  };
  const lesson = (kind) => async () => {
    buttons.forEach((button) => (button.disabled = true));
    fresh();
    await distil(student, teacher, x, { kind, side: data.side }, (step, seen) => {
      at("progress-teach").value = step + 1;
      return see(seen.maps);
    });
    await measure();
    at("lesson").textContent = `${NAMES[kind]}, 20 steps on ${data.lessons.length} scenes. Try the other one, and compare the maps.`;
    buttons.forEach((button) => (button.disabled = false));
  };
  at("teach-kd").onclick = lesson("kd");
  at("teach-e2kd").onclick = lesson("e2kd");
  at("forget").onclick = async () => {
    fresh();
    before = null;
    at("progress-teach").value = 0;
    before = await measure();
    at("forget").disabled = true;
  };
  before = await measure();
  at("lesson").textContent = "The teacher learned with boxes, and looks at the objects. The student looks elsewhere. Teach it on four scenes.";
}
